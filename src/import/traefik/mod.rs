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
    if !plan.local.is_empty() || !plan.acme.is_empty() {
        writeln!(out, "  tls:")?;
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
    writeln!(out, "      auth: open")
}

fn list<'a>(items: impl IntoIterator<Item = &'a String>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| quoted(i)).collect();
    items.join(", ")
}
