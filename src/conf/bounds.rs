//! Reads `limits:` and `timeouts:` of our section: how much of anything is accepted, and for how long.

use super::fields::Fields;
use super::meters::{self, Meters};
use super::own::Own;
use std::time::Duration;

/// More than a day of waiting is a typing error.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Overwrites in `own` what the section says.
pub(super) fn read(fields: &Fields<'_>, own: &mut Own, meters: &mut Meters) {
    if let Some(limits) = fields.child("limits") {
        let set = |slot: &mut u64, value: Option<u64>| *slot = value.unwrap_or(*slot);
        set(&mut own.limits.json_body, limits.bytes("json_body"));
        set(&mut own.limits.multipart_body, limits.bytes("multipart_body"));
        // Where it stood before `timeouts.body`.
        time(&limits, "body_timeout", &mut own.timeouts.body);
        set(&mut own.limits.header_bytes, limits.bytes("header_bytes"));
        set(&mut own.limits.connections, some(&limits, "connections"));
        set(
            &mut own.limits.connections_per_address,
            some(&limits, "connections_per_address"),
        );
        meters::limits(&limits, meters);
        limits.refuse_rest();
    }
    if let Some(timeouts) = fields.child("timeouts") {
        let own = &mut own.timeouts;
        for (name, slot) in [
            ("header", &mut own.header),
            ("body", &mut own.body),
            ("body_idle", &mut own.body_idle),
            ("keepalive", &mut own.keepalive),
            ("write", &mut own.write),
        ] {
            time(&timeouts, name, slot);
            if *slot > LONGEST
                && let Some(entry) = timeouts.entry(name)
            {
                let message = format!("`{name}` may be a day at most");
                drop(timeouts.error("duration", message, entry.value.at));
            }
        }
        time(&timeouts, "connect", &mut own.connect);
        time(&timeouts, "first_byte", &mut own.first_byte);
        time(&timeouts, "stream_idle", &mut own.stream_idle);
        time(&timeouts, "total", &mut own.total);
        own.drain = timeouts.duration("drain").unwrap_or(own.drain);
        own.shutdown_delay = timeouts.duration("shutdown_delay").unwrap_or(own.shutdown_delay);
        timeouts.refuse_rest();
    }
}

fn time(fields: &Fields<'_>, name: &'static str, slot: &mut Duration) {
    *slot = fields.some_time(name).unwrap_or(*slot);
}

/// A number above zero.
fn some(fields: &Fields<'_>, name: &'static str) -> Option<u64> {
    let n = fields.count(name)?;
    if n == 0
        && let Some(entry) = fields.entry(name)
    {
        let message = format!("with `{name}: 0` nobody could connect");
        drop(fields.error("number", message, entry.value.at));
    }
    Some(n)
}
