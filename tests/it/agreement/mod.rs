//! Replicas that agree through a real Redis: on money, requests, tokens and calls in flight; and what
//! becomes of questions while Redis is gone.

mod line;
mod money;
mod slots;
mod window;

use crate::kit::redis::Server;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper::shared::agreement::{Agreement, Measure, MoneyAsk, Settings, WindowAsk};

/// Patient, so that only what is asked decides, not how busy the machine is.
fn patient() -> Settings {
    Settings {
        bound: Duration::from_secs(20),
        lease: Duration::from_secs(60),
        ..Settings::default()
    }
}

fn replica(server: &Server, name: &str, settings: Settings) -> Arc<Agreement> {
    Agreement::connect_with(&server.url().into(), "tk", name, settings)
}

fn two(server: &Server) -> [Arc<Agreement>; 2] {
    ["a", "b"].map(|name| replica(server, name, patient()))
}

fn money(budget: i64) -> MoneyAsk {
    MoneyAsk {
        budget,
        ttl_seconds: 3_600,
        ..MoneyAsk::default()
    }
}

fn requests(limit: u64, window_seconds: u32, want: u64, share: u64) -> WindowAsk {
    WindowAsk {
        measure: Measure::Requests,
        limit,
        window_seconds,
        want,
        share,
        give_back: Vec::new(),
        adjust: 0,
    }
}
