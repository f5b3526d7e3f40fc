//! Which deployment of a name comes next: those that are not cooling, of these the lowest `order`, within it a draw by
//! weight.

use super::cooldown::{Bearing, Cooling, Rule, Stance};
use super::rooms::{Ceiling, ROOMS, Room, Stay};
use filters::model::deployment::Deployment;
use std::sync::Arc;
use std::time::Duration;

/// Before the first retry; doubled with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A deployment's place among those of its name.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Share of the calls; 0 = only when no other is left.
    pub weight: f64,
    /// Lower is tried first.
    pub order: i64,
    /// How often the whole group is tried again when every deployment has failed.
    pub retries: u32,
    /// How much it takes.
    pub ceiling: Ceiling,
    /// When it steps back; `None` = never.
    pub cooldown: Option<Rule>,
}

/// What comes next.
pub enum Next<'a> {
    Try(Drawn<'a>, Option<Stay>),
    /// Those that are left take no more; there may be room after so many milliseconds.
    Full(u64),
    /// None is left.
    End,
}

/// The deployment that is to be tried.
#[derive(Clone, Copy)]
pub struct Drawn<'a> {
    at: usize,
    pub deployment: &'a Arc<Deployment>,
    place: &'a Place,
    /// How it does; `None` where that changes nothing.
    pub bearing: Option<&'a Bearing>,
    /// How it stands now.
    pub stance: Stance,
    /// It is cooling, and nobody else was left.
    cooling: bool,
}

/// What a call has tried of a group: in each round each once.
#[derive(Default)]
pub struct Round {
    spares: bool,
    tried: Vec<usize>,
}

impl Round {
    /// `spares`: none that is cooling is tried.
    pub fn new(spares: bool) -> Self {
        Self {
            spares,
            tried: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tried.is_empty()
    }

    /// All may be tried again.
    pub fn again(&mut self) {
        self.tried.clear();
    }
}

/// The deployments of one name.
pub struct Group {
    pub name: String,
    pub deployments: Vec<Arc<Deployment>>,
    places: Vec<Place>,
    /// Of those that are limited.
    rooms: Vec<Option<Arc<Room>>>,
    /// Empty where there is nobody to step back for.
    bearings: Vec<Option<Bearing>>,
}

impl Group {
    /// `others`: other models take its calls, so that even a deployment that is alone may step back.
    pub fn new(name: String, members: Vec<(Arc<Deployment>, Place)>, others: bool) -> Self {
        let (deployments, places): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let rooms = deployments
            .iter()
            .zip(&places)
            .map(|(d, p): (&Arc<Deployment>, &Place)| p.ceiling.is_set().then(|| ROOMS.of(&d.id)))
            .collect();
        let bearings = match deployments.len() {
            0 | 1 if !others => Vec::new(),
            _ => deployments
                .iter()
                .zip(&places)
                .map(|(d, p)| Some(Bearing::new(d, p.cooldown?)))
                .collect(),
        };
        Self {
            name,
            deployments,
            places,
            rooms,
            bearings,
        }
    }

    /// A deployment that was not tried in this round and has room for a call of so many tokens. From now on it was.
    pub fn next(&self, round: &mut Round, tokens: impl Fn() -> u64) -> Next<'_> {
        let mut full: Vec<usize> = Vec::new();
        let mut soonest: Option<u64> = None;
        loop {
            let may = |at| !round.tried.contains(&at) && !full.contains(&at);
            let Some(drawn) = self.draw(may).filter(|d| !(d.cooling && round.spares)) else {
                return soonest.map_or(Next::End, Next::Full);
            };
            let stay = match self.rooms.get(drawn.at) {
                Some(Some(room)) => match room.enter(drawn.place.ceiling, tokens()) {
                    Ok(stay) => Some(stay),
                    Err(millis) => {
                        full.push(drawn.at);
                        soonest = Some(soonest.map_or(millis, |s| s.min(millis)));
                        continue;
                    }
                },
                _ => None,
            };
            round.tried.push(drawn.at);
            return Next::Try(drawn, stay);
        }
    }

    /// One of those that may be drawn; one that is cooling only if all are.
    fn draw(&self, may: impl Fn(usize) -> bool) -> Option<Drawn<'_>> {
        let mut drawn: Option<Drawn<'_>> = None;
        // Of those of the drawn one's order, so far.
        let mut weight = 0.0;
        let mut soonest: Option<(Cooling, Drawn<'_>)> = None;
        let all = self.deployments.iter().zip(&self.places).enumerate();
        for (at, (deployment, place)) in all.filter(|(at, _)| may(*at)) {
            let bearing = self.bearings.get(at).and_then(Option::as_ref);
            let cooling = bearing.and_then(Bearing::cooling);
            let this = Drawn {
                at,
                deployment,
                place,
                bearing,
                stance: bearing.map(Bearing::stance).unwrap_or_default(),
                cooling: cooling.is_some(),
            };
            if let Some(cooling) = cooling {
                if soonest.is_none_or(|(s, _)| cooling < s) {
                    soonest = Some((cooling, this));
                }
                continue;
            }
            let order = drawn.map_or(i64::MAX, |d| d.place.order);
            if drawn.is_some() && place.order > order {
                continue;
            }
            if place.order < order {
                (drawn, weight) = (None, 0.0);
            }
            weight += place.weight;
            // Each takes the place of those before it by its share of what all of them weigh.
            let takes = place.weight > 0.0
                && (place.weight >= weight || rand::random::<f64>() * weight < place.weight);
            if drawn.is_none() || takes {
                drawn = Some(this);
            }
        }
        drawn.or(soonest.map(|(_, d)| d))
    }

    /// All, and for how many seconds each is cooling.
    pub fn standings(&self) -> impl Iterator<Item = (&Arc<Deployment>, Option<f64>)> {
        self.deployments.iter().enumerate().map(|(at, d)| {
            let bearing = self.bearings.get(at).and_then(Option::as_ref);
            let left = bearing.and_then(Bearing::cooling);
            (d, left.map(|cooling| cooling.left as f64 / 1000.0))
        })
    }

    /// How long to wait before the group is tried again for the `round`-th time (0 = the first retry);
    /// None = it is not.
    pub fn pause(&self, round: u32) -> Option<Duration> {
        let retries = self.places.iter().map(|p| p.retries).max().unwrap_or(0);
        (round < retries).then(|| FIRST_PAUSE.saturating_mul(1 << round.min(10)).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cooldown::Symptom;
    use super::super::models::Models;
    use super::*;
    use crate::conf::{Env, load_text};
    use filters::testkit;

    fn group(members: &[(f64, i64)]) -> Group {
        let members = members.iter().map(|(weight, order)| {
            (
                Arc::new(testkit::deployment("openai")),
                Place {
                    weight: *weight,
                    order: *order,
                    retries: 0,
                    ceiling: Ceiling::default(),
                    cooldown: None,
                },
            )
        });
        Group::new("g".into(), members.collect(), false)
    }

    /// Which one is drawn when these were tried.
    fn drawn(g: &Group, tried: &[usize]) -> Option<usize> {
        g.draw(|at| !tried.contains(&at)).map(|d| d.at)
    }

    #[test]
    fn weights_decide_who_is_drawn() {
        let g = group(&[(9.0, 0), (1.0, 0)]);
        let first = (0..4000).filter(|_| drawn(&g, &[]) == Some(0)).count();
        assert!((3450..3750).contains(&first), "9 to 1 gave {first} of 4000");
        let g = group(&[(0.0, 0), (1.0, 0)]);
        assert!(
            (0..1000).all(|_| drawn(&g, &[]) == Some(1)),
            "a weight of nothing is never drawn"
        );
        assert_eq!(drawn(&g, &[1]), Some(0), "but is there when no other is left");
    }

    #[test]
    fn those_that_are_left_share_by_their_weights() {
        let g = group(&[(1000.0, 0), (1.0, 0), (3.0, 0)]);
        let last = (0..4000).filter(|_| drawn(&g, &[0]) == Some(2)).count();
        assert!((2850..3150).contains(&last), "3 to 1 gave {last} of 4000");
    }

    #[test]
    fn each_is_tried_once() {
        let g = group(&[(1.0, 0), (1.0, 0), (1.0, 0)]);
        let mut round = Round::default();
        let mut seen = Vec::new();
        while let Next::Try(drawn, _) = g.next(&mut round, || 1) {
            assert!(!seen.contains(&drawn.at));
            seen.push(drawn.at);
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_lower_order_comes_first() {
        let g = group(&[(100.0, 2), (1.0, 1), (1.0, 1), (1.0, i64::MAX)]);
        for _ in 0..100 {
            let first = drawn(&g, &[]).unwrap();
            let second = drawn(&g, &[first]).unwrap();
            assert_eq!(first + second, 3);
            assert_eq!(drawn(&g, &[first, second]), Some(0));
            assert_eq!(drawn(&g, &[0, 1, 2]), Some(3));
        }
    }

    #[test]
    fn one_without_room_is_passed_over() {
        let members = ["full-1", "full-2"].map(|id| {
            let mut d = testkit::deployment("openai");
            d.id = id.into();
            let place = Place {
                weight: 1.0,
                order: 0,
                retries: 0,
                ceiling: Ceiling {
                    parallel: Some(1),
                    ..Ceiling::default()
                },
                cooldown: None,
            };
            (Arc::new(d), place)
        });
        let g = Group::new("g".into(), members.into(), false);
        let fresh = Round::default;
        let Next::Try(first, stay) = g.next(&mut fresh(), || 1) else {
            panic!("both have room")
        };
        let Next::Try(second, other) = g.next(&mut fresh(), || 1) else {
            panic!("one has room")
        };
        assert_ne!(first.at, second.at);
        assert!(matches!(g.next(&mut fresh(), || 1), Next::Full(1..)));
        drop((stay, other));
        let mut round = fresh();
        let all = [(); 3].map(|()| match g.next(&mut round, || 1) {
            Next::Try(drawn, Some(_)) => Some(drawn.at),
            _ => None,
        });
        assert_eq!(all.iter().flatten().count(), 2, "each once");
    }

    /// Three that step back, each of another order.
    fn shy() -> Group {
        let members = (0..3).map(|order| {
            let mut d = testkit::deployment("openai");
            d.id = uuid::Uuid::new_v4().to_string();
            let place = Place {
                weight: 1.0,
                order,
                retries: 9,
                ceiling: Ceiling::default(),
                cooldown: Some(Rule::default()),
            };
            (Arc::new(d), place)
        });
        Group::new("g".into(), members.collect(), false)
    }

    /// Whom a round asks, each failing so.
    fn asked(g: &Group, round: &mut Round, symptom: Symptom, seconds: u64) -> Vec<usize> {
        let mut asked = Vec::new();
        while let Next::Try(drawn, _) = g.next(round, || 1) {
            asked.push(drawn.at);
            let told = Some(Duration::from_secs(seconds - drawn.at as u64));
            drawn.bearing.unwrap().failed(
                drawn.stance,
                symptom,
                told.filter(|_| symptom == Symptom::RateLimit),
            );
        }
        asked
    }

    #[test]
    fn those_that_are_cooling_are_asked_last_and_none_is_left_out() {
        let g = shy();
        let mut round = Round::default();
        let mut rounds = (0..3).map(|_| {
            let all = asked(&g, &mut round, Symptom::RateLimit, 100);
            round.again();
            all
        });
        assert_eq!(rounds.next().unwrap(), [0, 1, 2]);
        // The last one's time is over first.
        let order: Vec<_> = rounds.flatten().collect();
        assert_eq!(order, [2, 1, 0, 2, 1, 0]);
        let spared = asked(&g, &mut Round::new(true), Symptom::RateLimit, 100);
        assert_eq!(spared, [0; 0], "another model may do");
    }

    #[test]
    fn one_that_is_off_does_not_stand_before_one_that_answers() {
        let g = shy();
        let fail = |at: usize, symptom, seconds| {
            let bearing = g.bearings[at].as_ref().unwrap();
            bearing.failed(bearing.stance(), symptom, Some(Duration::from_secs(seconds)));
        };
        fail(0, Symptom::Unreachable, 5);
        fail(1, Symptom::Authentication, 6);
        fail(2, Symptom::RateLimit, 3600);
        assert_eq!(drawn(&g, &[]), Some(2));
        assert_eq!(drawn(&g, &[2]), Some(0));
    }

    #[test]
    fn who_is_alone_or_has_no_address_does_not_step_back() {
        let entry = |name: &str, model: &str| {
            format!("{{model_name: '{name}', litellm_params: {{model: '{model}'}}}}")
        };
        let pairs = [
            ("one", "openai/a"),
            ("*", "*"),
            ("*", "*"),
            ("g-*", "groq/*"),
            ("g-*", "groq/*"),
        ];
        let list = pairs.map(|(name, model)| entry(name, model)).join(",");
        let conf = load_text("test", &format!("model_list: [{list}]"), &Env::default());
        let models = Models::new(&conf.unwrap().conf).unwrap();
        for (name, steps_back) in [("one", false), ("groq/llama", false), ("g-llama", true)] {
            let group = models.find(name).unwrap().group;
            let Next::Try(drawn, _) = group.next(&mut Round::default(), || 1) else {
                panic!("{name}")
            };
            assert_eq!(drawn.bearing.is_some(), steps_back, "{name}");
            for symptom in Symptom::ALL.into_iter().filter(|_| steps_back) {
                let time = drawn.bearing.unwrap().failed(drawn.stance, symptom, None);
                assert_eq!(time.is_some(), symptom == Symptom::Unreachable, "{symptom:?}");
            }
        }
    }

    #[test]
    fn a_good_answer_brings_one_back_in_its_place() {
        let g = shy();
        asked(&g, &mut Round::default(), Symptom::Unreachable, 9);
        let Next::Try(first, _) = g.next(&mut Round::default(), || 1) else {
            panic!("one is asked")
        };
        assert!(
            g.standings()
                .all(|(_, left)| left.is_some_and(|s| s > 0.0 && s <= 5.0))
        );
        first.bearing.unwrap().answered(first.stance);
        assert_eq!(drawn(&g, &[]), Some(first.at));
        assert_eq!(g.standings().filter(|(_, left)| left.is_none()).count(), 1);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let member = Place {
            weight: 1.0,
            order: 0,
            retries: 40,
            ceiling: Ceiling::default(),
            cooldown: None,
        };
        let g = Group::new(
            "g".into(),
            vec![(Arc::new(testkit::deployment("openai")), member)],
            false,
        );
        let pauses: Vec<_> = (0..6).map(|r| g.pause(r).unwrap().as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(g.pause(40), None);
    }
}
