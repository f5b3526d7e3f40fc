//! Takes over what Traefik's labels in a compose file say: routers become lanes, services stay services, and
//! the model gateway's own routers become its hosts. `labels` reads the file, `static_config` Traefik's own
//! command line, `rule` and `middleware` what they name, `plan` decides, and here it is written down.

mod labels;
mod middleware;
mod plan;
mod rule;
mod static_config;

use middleware::quoted;
use plan::{Lane, Plan, Service};
use std::fmt::Write;

/// A compose file, taken over.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// The section `tollkeeper:`.
    pub yaml: String,
    /// What could not be taken, item by item.
    pub left: Vec<String>,
    /// What was taken and is not quite the same.
    pub notes: Vec<String>,
}

/// Takes a compose file over. `gateway` names the service that Tollkeeper takes the place of; else it is known
/// by its image. `variable` is the environment that compose would fill in. `Err` is a sentence.
pub fn take_over(
    compose: &str,
    gateway: Option<&str>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Taken, String> {
    let containers = labels::containers(compose, variable)?;
    let plan = plan::plan(&containers, gateway);
    if plan.lanes.is_empty() && plan.api.is_empty() {
        let left = plan.left.iter().map(|l| format!("\n  {l}")).collect::<String>();
        return Err(format!("there is no router in it that could be taken{left}"));
    }
    let mut yaml = String::new();
    // A String takes everything.
    let _ = write_plan(&plan, &mut yaml);
    Ok(Taken {
        yaml,
        left: plan.left,
        notes: plan.notes,
    })
}

fn write_plan(plan: &Plan, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "# Made of Traefik's labels. Put it beside model_list, or name it there under `include`."
    )?;
    writeln!(out, "tollkeeper:")?;
    writeln!(out, "  listeners:")?;
    for listener in &plan.listeners {
        let tls = if listener.tls { ", tls: true" } else { "" };
        let redirect = if listener.redirect {
            ", redirect_https: true"
        } else {
            ""
        };
        writeln!(
            out,
            "    - {{address: \"0.0.0.0:{}\"{tls}{redirect}}}",
            listener.port
        )?;
    }
    if !plan.local.is_empty() || !plan.acme.is_empty() || plan.sts.is_some() {
        writeln!(out, "  tls:")?;
    }
    if let Some(sts) = &plan.sts {
        let subdomains = if sts.subdomains {
            ", include_subdomains: true"
        } else {
            ""
        };
        let preload = if sts.preload { ", preload: true" } else { "" };
        writeln!(
            out,
            "    hsts: {{max_age: {}s{subdomains}{preload}}}",
            sts.seconds
        )?;
    }
    if !plan.local.is_empty() {
        writeln!(
            out,
            "    # Made here; clients have to trust the authority that `tollkeeper tls ca` prints."
        )?;
        writeln!(out, "    local: {{hosts: [{}]}}", list(&plan.local))?;
    }
    if !plan.acme.is_empty() {
        writeln!(out, "    acme:")?;
    }
    for (authority, hosts) in &plan.acme {
        writeln!(out, "      - hosts: [{}]", list(hosts))?;
        if let Some(email) = &authority.email {
            writeln!(out, "        email: {}", quoted(email))?;
        }
        if let Some(directory) = &authority.directory {
            writeln!(out, "        directory: {}", quoted(directory))?;
        }
        writeln!(
            out,
            "        terms: agreed   # of the authority's service, as Traefik did for you"
        )?;
    }
    if let Some(rate) = &plan.rate {
        let source = rate
            .source
            .as_ref()
            .map(|s| format!(", source: {s}"))
            .unwrap_or_default();
        writeln!(
            out,
            "  rate_limit: {{average: {}, burst: {}, period: {}{source}}}",
            rate.average,
            rate.burst,
            quoted(&rate.period)
        )?;
    }
    if !plan.api.is_empty() || !plan.admin.is_empty() {
        writeln!(out, "  hosts:")?;
        writeln!(out, "    api: [{}]", list(&plan.api))?;
        writeln!(out, "    admin: [{}]", list(&plan.admin))?;
    }
    if !plan.services.is_empty() {
        writeln!(out, "  services:")?;
    }
    for (name, service) in &plan.services {
        write_service(name, service, out)?;
    }
    if !plan.lanes.is_empty() {
        writeln!(out, "  lanes:")?;
    }
    plan.lanes.iter().try_for_each(|lane| write_lane(lane, out))
}

fn write_service(name: &str, service: &Service, out: &mut String) -> std::fmt::Result {
    writeln!(out, "    {}:", quoted(name))?;
    writeln!(out, "      backends:")?;
    for (url, weight) in &service.backends {
        match weight {
            Some(weight) => writeln!(out, "        - {{url: {}, weight: {weight}}}", quoted(url))?,
            None => writeln!(out, "        - {}", quoted(url))?,
        }
    }
    if !service.health.is_empty() {
        let fields: Vec<String> = service
            .health
            .iter()
            .map(|(k, v)| format!("{k}: {}", quoted(v)))
            .collect();
        writeln!(out, "      health_check: {{{}}}", fields.join(", "))?;
    }
    if !service.pass_host {
        writeln!(out, "      pass_host: false")?;
    }
    let effect = &service.effect;
    if let Some(bytes) = effect.body_bytes {
        writeln!(out, "      request_body_bytes: {bytes}")?;
    }
    if let Some(retries) = effect.retries {
        writeln!(out, "      retries: {retries}")?;
    }
    let sides = [
        ("request", &effect.request_set, &effect.request_remove),
        ("response", &effect.response_set, &effect.response_remove),
    ];
    if sides
        .iter()
        .any(|(_, set, remove)| !set.is_empty() || !remove.is_empty())
    {
        writeln!(out, "      headers:")?;
    }
    for (side, set, remove) in sides {
        let mut fields = Vec::new();
        if !set.is_empty() {
            let set: Vec<String> = set
                .iter()
                .map(|(k, v)| format!("{}: {}", quoted(k), quoted(v)))
                .collect();
            fields.push(format!("set: {{{}}}", set.join(", ")));
        }
        if !remove.is_empty() {
            fields.push(format!("remove: [{}]", list(remove)));
        }
        if !fields.is_empty() {
            writeln!(out, "        {side}: {{{}}}", fields.join(", "))?;
        }
    }
    Ok(())
}

fn write_lane(lane: &Lane, out: &mut String) -> std::fmt::Result {
    writeln!(out, "    - name: {}", quoted(&lane.name))?;
    if let Some(hosts) = &lane.rule.hosts {
        writeln!(out, "      hosts: [{}]", list(hosts))?;
    }
    match &lane.rule.paths {
        Some(paths) => writeln!(out, "      paths: [{}]", list(paths))?,
        None => writeln!(out, "      paths: [\"/*\"]")?,
    }
    if let Some(methods) = &lane.rule.methods {
        writeln!(out, "      methods: [{}]", list(methods))?;
    }
    if let Some(priority) = lane.priority {
        writeln!(out, "      priority: {priority}")?;
    }
    if !lane.strip.is_empty() {
        writeln!(out, "      strip_prefix: [{}]", list(&lane.strip))?;
    }
    if let Some(add) = &lane.add {
        writeln!(out, "      add_prefix: {}", quoted(add))?;
    }
    writeln!(out, "      driver: stream")?;
    writeln!(out, "      service: {}", quoted(&lane.service))?;
    writeln!(
        out,
        "      auth: {}",
        if lane.is_open { "open" } else { "required" }
    )
}

fn list<'a>(items: impl IntoIterator<Item = &'a String>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| quoted(i)).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{Conf, Env, load_text};
    use crate::snapshot::Snapshot;
    use filters::contract::ports::Ports;
    use std::path::Path;

    /// Compose files beside what is made of them; `UPDATE_EXPECT=1` writes what is made now, to be read by a
    /// person before it is committed.
    #[test]
    fn compose_files_become_configs() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traefik");
        for name in ["seed", "guide"] {
            let compose = std::fs::read_to_string(dir.join(format!("{name}.compose.yaml"))).unwrap();
            let taken = take_over(&compose, None, &|_| None).unwrap();
            let listed = |title: &str, items: &[String]| {
                let items: String = items.iter().map(|i| format!("  - {i}\n")).collect();
                format!("{title}\n{items}")
            };
            let left = listed("Not taken:", &taken.left) + &listed("Not quite the same:", &taken.notes);
            for (kind, made) in [("expected.yaml", &taken.yaml), ("left.txt", &left)] {
                let file = dir.join(format!("{name}.{kind}"));
                if std::env::var_os("UPDATE_EXPECT").is_some() {
                    std::fs::write(&file, made).unwrap();
                }
                let expected = std::fs::read_to_string(&file).unwrap_or_default();
                assert!(*made == expected, "{}:\n{made}", file.display());
            }
        }
    }

    fn usable(yaml: &str) -> Conf {
        let loaded = load_text("made.yaml", yaml, &Env::default())
            .unwrap_or_else(|report| panic!("{yaml}\n{}", report.render(false)));
        assert!(
            loaded.report.problems.is_empty(),
            "{}",
            loaded.report.render(false)
        );
        Snapshot::new(&loaded.conf, &filters::builtin::registry(), &Ports::detached()).unwrap();
        loaded.conf
    }

    #[test]
    fn what_is_made_can_be_used() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traefik");
        let seed = usable(&std::fs::read_to_string(dir.join("seed.expected.yaml")).unwrap()).tollkeeper;
        assert_eq!(seed.hosts.api, ["llm.haiven.local", "litellm", "litellm-proxy"]);
        assert!(seed.hosts.admin.contains(&"litellm.haiven.local".to_string()));
        assert_eq!(seed.rate_limit.map(|r| (r.average, r.burst)), Some((100, 200)));
        assert!(
            seed.listeners
                .iter()
                .any(|l| l.address.port() == 443 && l.tls.is_some())
        );
        let guide = std::fs::read_to_string(dir.join("guide.expected.yaml")).unwrap();
        let conf = usable(&guide);
        assert_eq!(conf.tollkeeper.services.len(), 4);
    }

    #[test]
    fn the_gateways_own_hsts_is_kept() {
        let label = |field: &str| format!("'traefik.http.middlewares.h.headers.{field}'");
        let taken = |fields: &[&str]| {
            let fields: Vec<String> = fields.iter().map(|f| label(f)).collect();
            let compose = format!(
                "services: {{litellm: {{image: litellm, labels: ['traefik.http.routers.a.rule=Host(`a.test`)',
                'traefik.http.routers.a.middlewares=h', 'traefik.http.services.a.loadbalancer.server.port=4000', {}]}}}}",
                fields.join(", ")
            );
            let taken = take_over(&compose, None, &|_| None).unwrap();
            let hsts = usable(&taken.yaml).tollkeeper.tls.hsts;
            (hsts.map(|h| h.value()), taken.left)
        };
        let (hsts, left) = taken(&["stsseconds=300", "stspreload=true"]);
        assert_eq!(hsts.as_deref(), Some("max-age=300"));
        assert!(left.iter().any(|l| l.contains("stspreload")), "{left:?}");
        let (hsts, left) = taken(&[
            "stsseconds=31536000",
            "stsincludesubdomains=true",
            "stspreload=true",
        ]);
        assert_eq!(
            hsts.as_deref(),
            Some("max-age=31536000; includeSubDomains; preload")
        );
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(taken(&["stsincludesubdomains=true"]).0, None);
    }

    #[test]
    fn odd_files_are_told_of() {
        let none = |_: &str| None;
        for (text, want) in [
            ("a: b", "no compose file"),
            ("services: {a: {image: x}}", "no router"),
            (
                "services: {a: {labels: ['traefik.http.routers.a.rule=Host(`${X}`)']}}",
                "variable that is not set",
            ),
            (
                "services: {a: {labels: ['traefik.http.routers.a.rule=Host(`a.test`)']}}",
                "no port of a is known",
            ),
            (
                "services: {a: {labels: ['traefik.http.routers.a.tls=true']}}",
                "has no rule",
            ),
        ] {
            let told = take_over(text, None, &none).unwrap_err();
            assert!(told.contains(want), "{text}: {told}");
        }
    }
}
