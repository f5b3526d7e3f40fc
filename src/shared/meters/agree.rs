//! Meters that replicas share: what a call lacks is asked of Redis, more than it needs at once, so that most
//! calls find it here. What is not used goes back within a moment.

use super::Meters;
use super::decide::{Lacks, Question};
use super::meter::{Meter, Rate, State};
use crate::shared::agreement::{Agreement, Measure, MoneyAsk, SlotsAsk, WindowAsk};
use filters::model::limits::Measure as Limited;
use futures::StreamExt;
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often Redis hears what became of grants.
pub const TICK: Duration = Duration::from_millis(250);
/// How long a "nothing left" is believed: others may give back at any time.
const DRY_MILLIS: u64 = 100;
/// A grant that nobody says anything of ends after ten seconds.
const RENEW_MILLIS: u64 = 3_000;
/// How old the store's word on what has landed may be, for accounts that are shared and in use.
const LANDED_MILLIS: u64 = 1_000;
/// Redis keeps what it knows of a period so long after the last question.
const REMEMBERED_SECONDS: u64 = 86_400;
/// A grant is at least this part of the limit.
const PORTION: u64 = 16;
/// Questions under way at once, of those that no call waits for.
const AT_ONCE: usize = 64;

/// A call that waits for a grant; what it needs is asked for along with what others need.
struct Waits<'a> {
    meter: &'a Meter,
    lacks: Lacks,
}

impl<'a> Waits<'a> {
    fn new(meter: &'a Meter, lacks: Lacks) -> Self {
        let waits = Self { meter, lacks };
        waits.count(1);
        waits
    }

    fn count(&self, sign: i64) {
        fn change(sum: &mut u64, by: u64, sign: i64) {
            *sum = match sign {
                1.. => sum.saturating_add(by),
                _ => sum.saturating_sub(by),
            };
        }
        let mut state = self.meter.state.lock();
        match self.lacks {
            Lacks::Money(nanos) => {
                let money = state.money.get_or_insert_default();
                money.lease.wanted = money
                    .lease
                    .wanted
                    .saturating_add(nanos.saturating_mul(sign))
                    .max(0);
            }
            Lacks::Requests(n) => change(&mut state.requests.get_or_insert_default().share.wanted, n, sign),
            Lacks::Tokens(n) => change(&mut state.tokens.get_or_insert_default().share.wanted, n, sign),
            Lacks::Slot => change(&mut state.slots.wanted, 1, sign),
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.count(-1);
    }
}

impl Meters {
    /// Puts the questions of a call, all at once.
    pub(super) async fn ask(&self, questions: Vec<Question>) {
        let Some(agreement) = &self.world.agreement else {
            return;
        };
        join_all(questions.iter().map(|q| self.ask_one(agreement, q))).await;
    }

    async fn ask_one(&self, agreement: &Agreement, question: &Question) {
        let (bound, meter) = (&question.bound, &question.bound.meter);
        let _waits = Waits::new(meter, question.lacks);
        let [money, requests, tokens, slots] = &meter.asking;
        match question.lacks {
            Lacks::Money(wanted) => {
                let _turn = money.lock().await;
                let now = self.now().mono;
                let budget = bound.allowance.nanos.unwrap_or(0);
                let answered = |state: &State| {
                    let lease = state.money.as_ref().map(|m| &m.lease);
                    let has = |l: &super::money::Lease| l.spare >= wanted || now < l.dry_until;
                    lease.is_some_and(|l| l.budget == budget && has(l))
                };
                // Whoever asked before asked for this call as well.
                if !answered(&meter.state.lock()) {
                    self.ask_money(agreement, meter, budget, wanted).await;
                }
            }
            Lacks::Requests(wanted) => {
                let _turn = requests.lock().await;
                let limit = bound.rpm.unwrap_or(0);
                self.ask_rate(agreement, meter, Limited::Requests, wanted, limit)
                    .await;
            }
            Lacks::Tokens(wanted) => {
                let _turn = tokens.lock().await;
                let limit = bound.tpm.unwrap_or(0);
                self.ask_rate(agreement, meter, Limited::Tokens, wanted, limit)
                    .await;
            }
            Lacks::Slot => {
                let _turn = slots.lock().await;
                let now = self.now().mono;
                let answered =
                    |state: &State| state.in_flight < state.slots.held || now < state.slots.full_until;
                if !answered(&meter.state.lock()) {
                    let limit = bound.parallel.unwrap_or(0);
                    self.ask_slots(agreement, meter, limit, true).await;
                }
            }
        }
    }

    /// The caller holds the account's turn. `wanted` = 0 only reports.
    async fn ask_money(&self, agreement: &Agreement, meter: &Meter, budget: i64, wanted: i64) {
        let (ask, added, about) = {
            let mut state = meter.state.lock();
            let Some(money) = &mut state.money else { return };
            let spare = money.lease.spare.max(0);
            money.lease.spare = spare;
            money.lease.unsaid = false;
            money.lease.said_at = self.now().mono;
            let want = match wanted {
                0 => 0,
                _ => wanted.max(money.lease.wanted).saturating_sub(spare).max(1),
            };
            let period = money.period();
            if budget > 0 {
                money.lease.budget = budget;
            }
            let ask = MoneyAsk {
                period: period.start,
                era: money.era(),
                landed: money.landed(),
                unlanded: money.unlanded(),
                held: money.reserved().saturating_add(spare),
                want,
                budget: money.lease.budget,
                idle: false,
                ttl_seconds: REMEMBERED_SECONDS,
            };
            (ask, money.added(), (money.era(), period.start))
        };
        let Ok(grant) = agreement.money(&meter.name(), &ask).await else {
            // Nobody knows whether it was heard.
            if let Some(money) = &mut meter.state.lock().money {
                money.lease.unsaid = true;
            }
            return;
        };
        let now = self.now().mono;
        let mut state = meter.state.lock();
        let Some(money) = &mut state.money else { return };
        let crossed = money.granted(about, grant.granted, grant.spent, added);
        if ask.want > 0 {
            money.lease.dry_until = match grant.granted < ask.want {
                true => now + DRY_MILLIS,
                false => 0,
            };
        }
        let (spent, period) = (money.spent(), money.period());
        drop(state);
        if crossed {
            self.crossed(&meter.account, spent, period.end);
        }
    }

    /// The caller holds the account's turn. `wanted` = 0 only gives back.
    async fn ask_rate(
        &self,
        agreement: &Agreement,
        meter: &Meter,
        measure: Limited,
        wanted: u64,
        limit: u64,
    ) {
        fn rate(state: &mut State, measure: Limited) -> &mut Rate {
            match measure {
                Limited::Tokens => state.tokens.get_or_insert_default(),
                _ => state.requests.get_or_insert_default(),
            }
        }
        let sent = self.now().mono;
        let ask = {
            let mut state = meter.state.lock();
            let share = &mut rate(&mut state, measure).share;
            let is_full = share
                .full
                .is_some_and(|f| wanted >= f.least && sent < f.believed_until);
            if wanted > 0 && (is_full || (sent < share.until && share.spare >= wanted)) {
                return;
            }
            share.put_back();
            if limit > 0 {
                share.limit = limit;
            }
            WindowAsk {
                measure: match measure {
                    Limited::Tokens => Measure::Tokens,
                    _ => Measure::Requests,
                },
                limit: share.limit,
                window_seconds: super::window::SECONDS as u32,
                want: wanted,
                share: match wanted {
                    0 => 0,
                    _ => share.wanted.max(share.limit / PORTION),
                },
                give_back: std::mem::take(&mut share.give_back),
                adjust: std::mem::take(&mut share.adjust),
            }
        };
        let Ok(grant) = agreement.window(&meter.name(), &ask).await else {
            // What was used beyond estimates may be said again; what was given back may not.
            let mut state = meter.state.lock();
            let share = &mut rate(&mut state, measure).share;
            share.adjust = share.adjust.saturating_add(ask.adjust.max(0));
            return;
        };
        let now = self.now().mono;
        let mut state = meter.state.lock();
        let share = &mut rate(&mut state, measure).share;
        share.told = Some((grant.used, now + grant.resets_in_millis));
        if wanted == 0 {
            return;
        }
        share.second = grant.second;
        share.spare = grant.granted;
        // By Redis' clock it answered after this was sent, so its second ends no earlier than this.
        share.until = sent + grant.lasts_millis;
        share.full = (grant.granted == 0).then_some(super::meter::Full {
            least: wanted,
            believed_until: now + DRY_MILLIS,
            room_at: now + grant.resets_in_millis,
        });
        drop(state);
    }

    /// The caller holds the account's turn.
    async fn ask_slots(&self, agreement: &Agreement, meter: &Meter, limit: u64, wants: bool) {
        let ask = {
            let mut state = meter.state.lock();
            let in_use = state.in_flight;
            let slots = &mut state.slots;
            if limit > 0 {
                slots.limit = limit;
            }
            slots.said_at = self.now().mono;
            // What is not in use goes back with the question, so no call may take it any more.
            slots.held = in_use;
            SlotsAsk {
                limit: slots.limit,
                in_use,
                want: if wants { slots.wanted.max(1) } else { 0 },
                share: if wants { slots.limit / PORTION } else { 0 },
            }
        };
        let Ok(grant) = agreement.slots(&meter.name(), &ask).await else {
            return;
        };
        let now = self.now().mono;
        let mut state = meter.state.lock();
        let slots = &mut state.slots;
        slots.held = ask.in_use.saturating_add(grant.granted);
        slots.everywhere = grant.in_use_everywhere;
        if wants {
            slots.full_until = if grant.granted == 0 { now + DRY_MILLIS } else { 0 };
        }
    }

    /// Tells Redis what became of its grants, and gives back what nobody used.
    pub(super) async fn agree(self: &Arc<Self>) {
        let Some(agreement) = self.world.agreement.clone().filter(|a| a.is_up()) else {
            return;
        };
        let listed = std::mem::take(&mut *self.listed.lock());
        if listed.is_empty() {
            return;
        }
        for meter in &listed {
            meter.listed.store(false, Ordering::SeqCst);
        }
        self.look_again(&listed);
        let agreement = &agreement;
        futures::stream::iter(listed)
            .for_each_concurrent(AT_ONCE, |meter| async move {
                self.report(agreement, &meter).await;
                if keeps(&meter) {
                    self.list(&meter);
                }
            })
            .await;
    }

    /// The process leaves, and its rows have landed: Redis hears that nothing is held or on its way here, so
    /// that those who go on need not wait until they may believe it.
    pub async fn part(self: &Arc<Self>) {
        let Some(agreement) = self.world.agreement.clone().filter(|a| a.is_up()) else {
            return;
        };
        let listed = std::mem::take(&mut *self.listed.lock());
        self.read_again(listed.clone()).await;
        for meter in &listed {
            if let Some(money) = &mut meter.state.lock().money {
                money.lease.spare = 0;
                money.lease.unsaid = true;
            }
        }
        let agreement = &agreement;
        futures::stream::iter(listed)
            .for_each_concurrent(AT_ONCE, |meter| async move {
                self.report(agreement, &meter).await;
            })
            .await;
    }

    /// Asks the store what of these has landed, where that is a while ago. Redis does not wait for it: the
    /// store may hang.
    fn look_again(self: &Arc<Self>, listed: &[Arc<Meter>]) {
        let now = self.now().mono;
        let is_old = |m: &Arc<Meter>| {
            let state = m.state.lock();
            let money = state.money.as_ref();
            money.is_some_and(|m| m.is_read() && m.read_before(now, LANDED_MILLIS))
        };
        let old: Vec<_> = listed.iter().filter(|m| is_old(m)).cloned().collect();
        if old.is_empty() || self.looking.swap(true, Ordering::SeqCst) {
            return;
        }
        let meters = Arc::clone(self);
        tokio::spawn(async move {
            meters.read_again(old.clone()).await;
            meters.looking.store(false, Ordering::SeqCst);
            for meter in old.iter().filter(|m| keeps(m)) {
                meters.list(meter);
            }
        });
    }

    async fn report(&self, agreement: &Agreement, meter: &Meter) {
        let now = self.now().mono;
        let old = |said_at: u64| now.saturating_sub(said_at) >= RENEW_MILLIS;
        let [money, requests, tokens, slots] = &meter.asking;
        let has_news = |state: &mut State| {
            state.money.as_mut().is_some_and(|m| {
                if !std::mem::take(&mut m.lease.busy) && m.lease.spare > 0 {
                    m.lease.spare = 0;
                    m.lease.unsaid = true;
                }
                m.lease.budget > 0 && (m.lease.unsaid || (m.holds() && old(m.lease.said_at)))
            })
        };
        if let Ok(_turn) = money.try_lock()
            && has_news(&mut meter.state.lock())
        {
            self.ask_money(agreement, meter, 0, 0).await;
        }
        for (turn, measure) in [(requests, Limited::Requests), (tokens, Limited::Tokens)] {
            let has_news = |state: &mut State| {
                let rate = match measure {
                    Limited::Tokens => &mut state.tokens,
                    _ => &mut state.requests,
                };
                let share = rate.as_mut().map(|r| &mut r.share);
                share.is_some_and(|s| {
                    if now >= s.until {
                        s.put_back();
                    }
                    s.limit > 0 && (!s.give_back.is_empty() || s.adjust != 0)
                })
            };
            if let Ok(_turn) = turn.try_lock()
                && has_news(&mut meter.state.lock())
            {
                self.ask_rate(agreement, meter, measure, 0, 0).await;
            }
        }
        let has_news = |state: &State| {
            let slots = &state.slots;
            slots.limit > 0 && (slots.held > state.in_flight || (slots.held > 0 && old(slots.said_at)))
        };
        if let Ok(_turn) = slots.try_lock()
            && has_news(&meter.state.lock())
        {
            self.ask_slots(agreement, meter, 0, false).await;
        }
    }
}

/// Redis has to hear of it again.
fn keeps(meter: &Meter) -> bool {
    let state = meter.state.lock();
    let says = |r: &Option<Box<Rate>>| r.as_ref().is_some_and(|r| r.share.has_something_to_say());
    state.in_flight > 0
        || state.slots.held > 0
        || says(&state.requests)
        || says(&state.tokens)
        || state
            .money
            .as_ref()
            .is_some_and(|m| m.lease.budget > 0 && (m.holds() || m.lease.unsaid || m.unlanded() > 0))
}
