//! Checks the rules of lanes against services and each other: who leads nowhere, who is never reached.

use std::collections::HashSet;

use super::own::{Driver, Lane};
use super::report::Notes;
use super::text::{nearest, shown};
use super::types::Conf;

/// What only shows in the whole: services that are not there, or not used; lanes that nobody reaches.
pub(super) fn whole(conf: &Conf, notes: &Notes) {
    let own = &conf.tollkeeper;
    let place = |index: usize| format!("tollkeeper → lanes[{index}]");
    let mut used = HashSet::new();
    for (index, lane) in own.lanes.iter().enumerate() {
        let Some(name) = lane.service.as_deref() else {
            continue;
        };
        used.insert(name);
        if own.services.iter().any(|s| s.name == name) {
            continue;
        }
        let message = format!(
            "lane \"{}\" leads to the service \"{}\", which is not there",
            shown(&lane.name),
            shown(name)
        );
        let draft = notes
            .error("unknown-service", message)
            .at(lane.at)
            .path(&place(index));
        match nearest(name, own.services.iter().map(|s| s.name.as_str())) {
            Some(near) => drop(draft.label(format!("did you mean `{}`?", shown(near)))),
            None => drop(draft.help("add it to tollkeeper → services")),
        }
    }
    for service in own.services.iter().filter(|s| !used.contains(s.name.as_str())) {
        let message = format!("no lane leads to the service \"{}\"", shown(&service.name));
        let draft = notes.warning("unused-service", message).at(service.at);
        drop(draft.path("tollkeeper → services"));
    }
    reached(&own.lanes, notes);
}

/// Finds lanes that say the same as another one, and lanes that another one stands before wherever they
/// would answer.
fn reached(lanes: &[Lane], notes: &Notes) {
    for (index, lane) in lanes.iter().enumerate() {
        let path = format!("tollkeeper → lanes[{index}]");
        let everything = lane.hosts.is_empty() && lane.paths.iter().any(|p| p == "/*");
        if everything && lane.driver == Driver::Stream && lane.methods.is_empty() && lane.priority >= 0 {
            let message = format!(
                "lane \"{}\" takes every path on every host, the model API's too",
                shown(&lane.name)
            );
            let draft = notes.warning("shadowing", message).at(lane.at).path(&path);
            drop(draft.help("give it hosts, or a path of its own"));
        }
        let mut duplicate = None;
        let hidden_by = rules(lane).map(|rule| {
            lanes.iter().enumerate().find_map(|(other, it)| {
                if other == index {
                    return None;
                }
                let hides = rules(it).any(|theirs| {
                    let same = theirs.same(&rule);
                    if same && other < index {
                        duplicate.get_or_insert(it);
                    }
                    !same && theirs.before(&rule) && theirs.covers(&rule)
                });
                hides.then_some(it)
            })
        });
        let hidden_by: Vec<Option<&Lane>> = hidden_by.collect();
        if let Some(other) = duplicate {
            let message = format!(
                "lane \"{}\" has a rule that lane \"{}\" has too",
                shown(&lane.name),
                shown(&other.name)
            );
            let draft = notes.error("duplicate-rule", message).at(lane.at).path(&path);
            drop(draft.help(format!(
                "the first is at line {}; tell them apart by hosts, paths, methods or priority",
                other.at.line
            )));
        } else if let Some(Some(first)) = hidden_by.first()
            && hidden_by.iter().all(Option::is_some)
        {
            let message = format!(
                "lane \"{}\" is never reached: lane \"{}\" (priority {}) takes all that it would",
                shown(&lane.name),
                shown(&first.name),
                first.priority
            );
            drop(notes.warning("shadowed", message).at(lane.at).path(&path));
        }
    }
}

/// A host, a path, methods: what a request must have.
struct Rule<'a> {
    host: Option<&'a str>,
    path: &'a str,
    methods: &'a [String],
    priority: i64,
}

fn rules(lane: &Lane) -> impl Iterator<Item = Rule<'_>> {
    let hosts: Vec<Option<&str>> = match lane.hosts.as_slice() {
        [] => vec![None],
        hosts => hosts.iter().map(|h| Some(h.as_str())).collect(),
    };
    lane.paths.iter().flat_map(move |path| {
        let hosts = hosts.clone();
        hosts.into_iter().map(move |host| Rule {
            host,
            path,
            methods: &lane.methods,
            priority: lane.priority,
        })
    })
}

impl Rule<'_> {
    fn same(&self, other: &Rule<'_>) -> bool {
        let shares = |a: &[String], b: &[String]| a.iter().any(|m| b.contains(m));
        let methods = match (self.methods, other.methods) {
            ([], []) => true,
            // A lane for some methods stands beside one for all.
            ([], _) | (_, []) => false,
            (a, b) => shares(a, b),
        };
        self.host == other.host && self.path == other.path && self.priority == other.priority && methods
    }

    /// Looked at first, whatever the host rank says.
    fn before(&self, other: &Rule<'_>) -> bool {
        self.priority > other.priority
    }

    fn covers(&self, other: &Rule<'_>) -> bool {
        let host = match (self.host, other.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => {
                mine == theirs
                    || mine
                        .strip_prefix('*')
                        .is_some_and(|end| theirs.len() > end.len() && theirs.ends_with(end))
            }
        };
        let path = match self.path.strip_suffix("/*") {
            Some("") => true,
            Some(start) => {
                let theirs = other.path.trim_end_matches("/*");
                theirs == start
                    || theirs
                        .strip_prefix(start)
                        .is_some_and(|rest| rest.starts_with('/'))
            }
            None => self.path == other.path,
        };
        let methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|m| self.methods.contains(m));
        host && path && methods
    }
}
