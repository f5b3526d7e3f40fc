//! The process as the kernel sees it, under the names that every Prometheus client uses.

use super::catalog as c;
use super::page::{Page, Source};
use std::fs;

/// What `/proc` counts CPU time in. It is 100 a second on every Linux that programs are built for.
const TICKS: f64 = 100.0;

/// Reads `/proc/self` at each scrape. Where there is none, nothing is shown.
pub struct Process {
    /// Seconds since 1970.
    started: Option<f64>,
}

impl Default for Process {
    fn default() -> Self {
        Self { started: started() }
    }
}

impl Source for Process {
    fn gather(&self, page: &mut Page) {
        if let Some(stat) = stat()
            && let (Some(user), Some(system)) = (number(&stat, 11), number(&stat, 12))
        {
            page.float(&c::CPU, &[], (user + system) / TICKS);
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (family, name, times) in [
            (&c::RSS, "VmRSS:", 1024),
            (&c::VIRTUAL, "VmSize:", 1024),
            (&c::THREADS, "Threads:", 1),
        ] {
            if let Some(n) = after(&status, name).and_then(|n| n.parse::<u64>().ok()) {
                page.int(family, &[], n.saturating_mul(times));
            }
        }
        if let Some(n) = open_files() {
            page.int(&c::OPEN_FDS, &[], n);
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(n) = after(&limits, "Max open files").and_then(|n| n.parse::<u64>().ok()) {
            page.int(&c::MAX_FDS, &[], n);
        }
        if let Some(started) = self.started {
            page.float(&c::STARTED, &[], started);
        }
    }
}

/// The first word behind `name` at the start of a line.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()
}

/// What follows the process' name, which may hold anything, in `/proc/self/stat`.
fn stat() -> Option<String> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    text.rsplit_once(')').map(|(_, rest)| rest.to_string())
}

fn number(stat: &str, at: usize) -> Option<f64> {
    stat.split_whitespace().nth(at)?.parse().ok()
}

fn started() -> Option<f64> {
    let ticks = number(&stat()?, 19)?;
    let booted: f64 = after(&fs::read_to_string("/proc/stat").ok()?, "btime")?
        .parse()
        .ok()?;
    Some(booted + ticks / TICKS)
}

/// Kernels since 6.2 say it at once; on older ones the directory is counted.
fn open_files() -> Option<u64> {
    let place = "/proc/self/fd";
    match fs::metadata(place).ok()?.len() {
        0 => Some(fs::read_dir(place).ok()?.count() as u64),
        n => Some(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        let mut page = Page::default();
        Process::default().gather(&mut page);
        let text = page.finish();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|l| l.starts_with(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name}: {text}"))
                .split(' ')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
        let now = jiff::Timestamp::now().as_second() as f64;
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }
}
