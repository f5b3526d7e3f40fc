//! The ledger: what was appended is in the store once, whatever happens in between.

use crate::kit::LONG;
use crate::kit::postgres::{self, Server};
use crate::store::{differences, key, open, open_hasty, record};
use filters::model::account::{Account, Kind};
use filters::model::key::KeyHash;
use filters::model::record::{Attempt, Record};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tollkeeper::ledger::check::{Report, check};
use tollkeeper::ledger::spool::{Bounds, Disk};
use tollkeeper::ledger::{Ledger, LedgerStats, Settings, frame};
use tollkeeper::store::{Page, SpendFilter, Store};

/// Settings that do not wait where a test would wait with them.
fn brisk() -> Settings {
    Settings {
        linger: Duration::from_millis(1),
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(100),
        ..Settings::default()
    }
}

async fn sqlite(dir: &Path) -> Arc<dyn Store> {
    open(dir.join("store.db").to_str().unwrap()).await
}

async fn postgres() -> Arc<dyn Store> {
    let store = open(&postgres::shared().database()).await;
    store.ready().await;
    store
}

/// A store that is always away: nothing listens on port 1.
async fn away() -> Arc<dyn Store> {
    open("postgres://nobody@127.0.0.1:1/none").await
}

async fn ids(store: &dyn Store) -> BTreeSet<String> {
    let page = Page {
        limit: 10_000,
        offset: 0,
    };
    let rows = store
        .spend_logs(&SpendFilter {
            page,
            ..SpendFilter::default()
        })
        .await
        .unwrap();
    let all = rows.len();
    let ids: BTreeSet<String> = rows.into_iter().map(|r| r.request_id).collect();
    assert_eq!(ids.len(), all, "no id twice");
    ids
}

fn named(n: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
    n.into_iter().map(|n| format!("r{n}")).collect()
}

/// Looks again and again until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        look.tick().await;
    }
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(data.join("spool"))
        .unwrap()
        .flat_map(|slot| fs::read_dir(slot.unwrap().path()).unwrap())
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "seg"))
        .collect();
    found.sort();
    found
}

/// Puts a segment where a process that died would have left it.
fn plant(data: &Path, bytes: &[u8]) {
    let slot = data.join("spool/0");
    fs::create_dir_all(&slot).unwrap();
    fs::write(slot.join("00000000000000000001.seg"), bytes).unwrap();
}

fn frames(records: &[Record]) -> Vec<Vec<u8>> {
    let framed = |r: &Record| {
        let mut out = Vec::new();
        frame::encode(r, &mut out).unwrap();
        out
    };
    records.iter().map(framed).collect()
}

/// What a key has spent that is not in the store yet.
fn unlanded(ledger: &Ledger, hash: KeyHash) -> i64 {
    let account = Account::new(Kind::Key, hash.hex());
    ledger.unlanded(&[&account])[0]
}

#[tokio::test]
async fn what_is_appended_lands_once() {
    let dir = tempfile::tempdir().unwrap();
    for (name, store) in [("a", sqlite(dir.path()).await), ("b", postgres().await)] {
        store.insert_key(&key("sk-a")).await.unwrap();
        let data = dir.path().join(name);
        let ledger = Ledger::open(&data, store.clone(), Settings::default()).unwrap();
        for n in 0..1_200 {
            ledger.append(record(&format!("r{n}"))).unwrap();
        }
        assert!(ledger.drain(LONG).await, "{:?}", ledger.stats());
        assert_eq!(ids(&*store).await, named(0..1_200));
        assert_eq!(unlanded(&ledger, KeyHash::of("sk-a")), 0);
        let expected = LedgerStats {
            landed: 1_200,
            healthy: true,
            ..LedgerStats::default()
        };
        assert_eq!(ledger.stats(), expected);
        let report = check(&data, &*store, LONG).await.unwrap();
        assert!(report.is_sound(), "{report}");
        for path in [data.join("spool"), data.join("spool/0")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
        for entry in fs::read_dir(data.join("spool/0")).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        assert!(ledger.close(LONG).await);
    }
}

#[tokio::test]
async fn a_lone_record_does_not_wait_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let ledger = Ledger::open(dir.path(), store.clone(), Settings::default()).unwrap();
    ledger.append(record("r1")).unwrap();
    until("the row is there", || ledger.stats().landed == 1).await;
    ledger.append(record("r2")).unwrap();
    until("the next row is there", || ledger.stats().landed == 2).await;
}

#[tokio::test]
async fn money_on_its_way_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let hash = KeyHash::of("sk-a");
    let ledger = Ledger::open(dir.path(), away().await, brisk()).unwrap();
    for n in 0..10 {
        ledger.append(record(&format!("r{n}"))).unwrap();
    }
    assert_eq!(unlanded(&ledger, hash), 15_000);
    assert_eq!(unlanded(&ledger, KeyHash::of("sk-other")), 0);
    assert!(
        !ledger.drain(Duration::from_millis(50)).await,
        "the store is away"
    );
    until("that is noticed", || !ledger.stats().healthy).await;
    let stats = ledger.stats();
    assert_eq!(stats.pending_records, 10);
    assert!(stats.oldest_age < Duration::from_secs(86_400 * 365 * 100));
    ledger.close(Duration::ZERO).await;

    let again = Ledger::open(dir.path(), away().await, brisk()).unwrap();
    assert_eq!(unlanded(&again, hash), 15_000, "found in the spool");
    assert_eq!(again.stats().pending_records, 10);
    again.close(Duration::ZERO).await;

    let store = sqlite(dir.path()).await;
    store.insert_key(&key("sk-a")).await.unwrap();
    let back = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    assert!(back.drain(LONG).await);
    assert_eq!(unlanded(&back, hash), 0);
    assert_eq!(store.spend_of_key(&hash).await.unwrap(), Some(15_000));
}

#[tokio::test]
async fn a_stopped_postgres_loses_and_doubles_nothing() {
    let mut server = Server::start();
    let store = open(&server.database()).await;
    store.ready().await;
    store.insert_key(&key("sk-a")).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::new(Ledger::open(dir.path(), store.clone(), brisk()).unwrap());
    let going = Arc::new(AtomicBool::new(true));
    let written = Arc::new(AtomicU64::new(0));
    let callers = {
        let (ledger, going, written) = (ledger.clone(), going.clone(), written.clone());
        std::thread::spawn(move || {
            while going.load(SeqCst) {
                let n = written.load(SeqCst);
                ledger.append(record(&format!("r{n}"))).unwrap();
                written.store(n + 1, SeqCst);
                // The pace of callers; nothing waits for this.
                std::thread::park_timeout(Duration::from_millis(2));
            }
        })
    };
    for _ in 0..3 {
        let before = ledger.stats().landed;
        until("rows land", || ledger.stats().landed > before + 20).await;
        server.stop();
        let n = written.load(SeqCst);
        until("calls go on", || written.load(SeqCst) > n + 100).await;
        until("it is noticed", || !ledger.stats().healthy).await;
        server.up();
    }
    going.store(false, SeqCst);
    callers.join().unwrap();
    assert!(ledger.drain(LONG).await, "{:?}", ledger.stats());
    assert_eq!(ids(&*store).await, named(0..written.load(SeqCst)));
    assert_eq!(differences(&*store).await, []);
    assert!(ledger.stats().healthy);
}

#[tokio::test]
async fn a_hanging_postgres_holds_no_caller() {
    let server = Server::start();
    let url = server.database();
    let store = open_hasty(&url).await;
    store.ready().await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    ledger.append(record("r0")).unwrap();
    assert!(ledger.drain(LONG).await);
    server.freeze();
    let mut quickest = Duration::MAX;
    // The disk may be busy with something else at times, and not each time.
    for hundred in 0..5 {
        let began = Instant::now();
        for n in 0..100 {
            ledger
                .append(record(&format!("r{}", 1 + hundred * 100 + n)))
                .unwrap();
        }
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");
    until("the hang is noticed", || !ledger.stats().healthy).await;
    server.thaw();
    assert!(ledger.drain(LONG).await, "{:?}", ledger.stats());
    let store = open(&url).await;
    store.ready().await;
    assert_eq!(ids(&*store).await, named(0..=500));
    assert_eq!(differences(&*store).await, []);
}

#[tokio::test]
async fn poison_is_split_off() {
    let dir = tempfile::tempdir().unwrap();
    for (name, store) in [("a", sqlite(dir.path()).await), ("b", postgres().await)] {
        let ledger = Ledger::open(&dir.path().join(name), store.clone(), Settings::default()).unwrap();
        let poisoned = [0, 1, 77, 133, 199];
        for n in 0..200 {
            let mut r = record(&format!("r{n}"));
            if poisoned.contains(&n) {
                r.spend_nanos = if n == 77 { i64::MAX } else { -1 };
            }
            ledger.append(r).unwrap();
        }
        assert!(ledger.drain(LONG).await, "{:?}", ledger.stats());
        let stats = ledger.stats();
        assert_eq!((stats.landed, stats.dead, stats.healthy), (195, 5, true));
        assert_eq!(
            ids(&*store).await,
            named((0..200).filter(|n| !poisoned.contains(n)))
        );
        let dead = store.dead_letters(Page::default()).await.unwrap();
        let dead: BTreeSet<String> = dead.into_iter().map(|d| d.request_id).collect();
        assert_eq!(dead, named(poisoned));
        assert_eq!(unlanded(&ledger, KeyHash::of("sk-a")), 0);
        let report = check(&dir.path().join(name), &*store, LONG).await.unwrap();
        assert_eq!(
            (report.dead_letters, report.differences.len()),
            (5, 0),
            "{report}"
        );
    }
}

#[tokio::test]
async fn hostile_text_lands_cleaned() {
    let dir = tempfile::tempdir().unwrap();
    for (name, store) in [("a", sqlite(dir.path()).await), ("b", postgres().await)] {
        let ledger = Ledger::open(&dir.path().join(name), store.clone(), brisk()).unwrap();
        let evil = format!("\0';--\u{1b}[2J{}", "é".repeat(2_500));
        let attempt = Attempt {
            deployment_id: evil.clone(),
            status: 500,
            error: Some(evil.clone()),
            duration_micros: -1,
        };
        let hostile = Record {
            request_id: evil.clone(),
            provider: evil.clone(),
            client_ip: evil.clone(),
            model_group: evil.clone(),
            user_id: Some(evil.clone()),
            metadata: Some(evil.clone()),
            tags: vec![evil.clone(); 200],
            attempts: vec![attempt; 1_000],
            ..record("x")
        };
        ledger.append(record("r1")).unwrap();
        ledger.append(hostile).unwrap();
        ledger.append(record("r2")).unwrap();
        assert!(ledger.drain(LONG).await);
        let stats = ledger.stats();
        assert_eq!((stats.landed, stats.dead), (3, 0), "{}", store.kind());
        assert_eq!(differences(&*store).await, []);
    }
}

#[tokio::test]
async fn a_cut_anywhere_in_the_last_frame_costs_that_frame_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let records = [record("r0"), record("r1"), record("r2")];
    let framed = frames(&records);
    let whole = framed.concat();
    let last = framed[2].len();
    for cut in 0..=last {
        let data = dir.path().join(format!("cut{cut}"));
        plant(&data, &whole[..whole.len() - last + cut]);
        let ledger = Ledger::open(&data, store.clone(), brisk()).unwrap();
        let expected = if cut == last { 3 } else { 2 };
        ledger.append(record("r3")).unwrap();
        assert!(ledger.drain(LONG).await, "cut at {cut}: {:?}", ledger.stats());
        assert_eq!(ledger.stats().landed, expected + 1, "cut at {cut}");
        if cut + 1 == last {
            assert_eq!(ids(&*store).await, ["r0", "r1", "r3"].map(String::from).into());
        }
    }
    assert_eq!(ids(&*store).await, named(0..4));
    assert_eq!(differences(&*store).await, []);
}

#[tokio::test]
async fn damage_in_the_middle_costs_what_it_hit() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let framed = frames(&(0..20).map(|n| record(&format!("r{n}"))).collect::<Vec<_>>());
    let mut bytes = framed.concat();
    let start: usize = framed[..7].iter().map(Vec::len).sum();
    bytes[start + 2] = 0xff; // the length of r7
    let start: usize = framed[..12].iter().map(Vec::len).sum();
    bytes[start + 40] ^= 1; // the payload of r12
    plant(dir.path(), &bytes);
    let report = check(dir.path(), &*store, LONG).await.unwrap();
    assert_eq!(
        (report.waiting, report.damaged.len(), report.is_sound()),
        (18, 1, false),
        "{report}"
    );
    let ledger = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    assert!(ledger.drain(LONG).await);
    assert_eq!(ledger.stats().landed, 18);
    assert_eq!(
        ids(&*store).await,
        named((0..20).filter(|n| ![7, 12].contains(n)))
    );
    assert_eq!(ledger.stats().spool_errors, 2);
    let report = check(dir.path(), &*store, LONG).await.unwrap();
    assert_eq!(
        (report.put_aside.len(), report.is_sound()),
        (2, false),
        "{report}"
    );
}

#[tokio::test]
async fn what_an_earlier_version_left_lands_with_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let mut bytes = Vec::new();
    for n in 0..3 {
        // Records used to lie in the spool as JSON.
        let json = serde_json::to_vec(&record(&format!("r{n}"))).unwrap();
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(&json).to_le_bytes());
        bytes.extend(json);
    }
    bytes.extend(frames(&[record("r3")]).concat());
    plant(dir.path(), &bytes);
    let report = check(dir.path(), &*store, LONG).await.unwrap();
    assert_eq!((report.waiting, report.is_sound()), (4, true), "{report}");
    let ledger = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    assert!(ledger.drain(LONG).await);
    assert_eq!(ids(&*store).await, named(0..4));
    assert_eq!(differences(&*store).await, []);
}

#[tokio::test]
async fn nonsense_for_a_spool_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let mut noise: Vec<u8> = (0..3_000_000_u64)
        .map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect();
    noise.extend(frames(&[record("r0")]).concat());
    // A whole frame that holds no record.
    let json = br#"{"not":"a record"}"#;
    noise.extend((json.len() as u32).to_le_bytes());
    noise.extend(crc32fast::hash(json).to_le_bytes());
    noise.extend(json);
    noise.extend(frames(&[record("r1")]).concat());
    plant(dir.path(), &noise);
    fs::write(dir.path().join("spool/0/cursor"), "not a cursor").unwrap();
    let ledger = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    assert!(ledger.drain(LONG).await, "{:?}", ledger.stats());
    assert_eq!(ids(&*store).await, named(0..2));
    assert_eq!(ledger.stats().dead, 1, "what no version reads is counted");
}

#[tokio::test]
async fn finished_segments_go_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let small = Settings {
        batch_records: 7,
        spool: Bounds {
            segment_bytes: 800,
            ..Bounds::default()
        },
        ..brisk()
    };
    let ledger = Ledger::open(dir.path(), away().await, small.clone()).unwrap();
    for n in 0..100 {
        ledger.append(record(&format!("r{n}"))).unwrap();
    }
    assert!(segments(dir.path()).len() > 10);
    ledger.close(Duration::ZERO).await;
    let ledger = Ledger::open(dir.path(), store.clone(), small).unwrap();
    for n in 100..200 {
        ledger.append(record(&format!("r{n}"))).unwrap();
    }
    assert!(ledger.drain(LONG).await, "{:?}", ledger.stats());
    assert_eq!(ids(&*store).await, named(0..200));
    assert_eq!(segments(dir.path()).len(), 1, "the one being written");
    ledger.close(LONG).await;
    let again = Ledger::open(dir.path(), store, brisk()).unwrap();
    assert!(again.drain(LONG).await);
    assert_eq!(again.stats().landed, 0, "nothing is sent twice after a clean end");
}

#[tokio::test]
async fn processes_do_not_share_and_the_living_inherit() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let nowhere = away().await;
    let old = Ledger::open(dir.path(), nowhere.clone(), brisk()).unwrap();
    let new = Ledger::open(dir.path(), nowhere.clone(), brisk()).unwrap();
    for n in 0..10 {
        let ledger = if n % 2 == 0 { &old } else { &new };
        ledger.append(record(&format!("r{n}"))).unwrap();
    }
    assert_eq!((old.stats().pending_records, new.stats().pending_records), (5, 5));
    let third = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    assert!(third.drain(LONG).await);
    assert_eq!(third.stats().landed, 0, "what the living hold is theirs");
    third.close(LONG).await;
    old.close(Duration::ZERO).await;
    new.close(Duration::ZERO).await;
    let heir = Ledger::open(dir.path(), store.clone(), brisk()).unwrap();
    heir.append(record("r10")).unwrap();
    assert!(heir.drain(LONG).await);
    assert_eq!(heir.stats().landed, 11);
    assert_eq!(ids(&*store).await, named(0..11));
}

#[tokio::test]
async fn a_copy_taken_at_any_moment_has_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let ledger = Arc::new(Ledger::open(&live, away().await, brisk()).unwrap());
    let acknowledged = Arc::new(AtomicU64::new(0));
    let going = Arc::new(AtomicBool::new(true));
    let caller = {
        let (ledger, acknowledged, going) = (ledger.clone(), acknowledged.clone(), going.clone());
        std::thread::spawn(move || {
            for n in 0..20_000 {
                if !going.load(SeqCst) {
                    return;
                }
                ledger.append(record(&format!("r{n}"))).unwrap();
                acknowledged.store(n + 1, SeqCst);
            }
        })
    };
    for round in 0..8 {
        // What a kill would leave: the bytes written so far.
        let before = acknowledged.load(SeqCst);
        let copied = dir.path().join(format!("copy{round}"));
        let bytes: Vec<u8> = segments(&live)
            .iter()
            .flat_map(|p| fs::read(p).unwrap())
            .collect();
        plant(&copied, &bytes);
        let store = sqlite(&copied).await;
        let revived = Ledger::open(&copied, store.clone(), brisk()).unwrap();
        assert!(revived.drain(LONG).await, "{:?}", revived.stats());
        let found = store.count_records(&SpendFilter::default()).await.unwrap();
        assert!(
            found >= before,
            "round {round}: {before} were acknowledged, {found} were found"
        );
        assert_eq!(differences(&*store).await, []);
    }
    going.store(false, SeqCst);
    caller.join().unwrap();
}

/// A disk that takes `room` bytes more and then refuses, in mid-frame if that is how it comes.
struct FullDisk {
    room: AtomicU64,
}

impl Disk for FullDisk {
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room.load(SeqCst);
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let n = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.room.fetch_sub(n as u64, SeqCst);
        file.write(&bytes[..n])
    }
}

#[tokio::test]
async fn a_full_disk_stops_nobody() {
    for room in [0, 1, 900, 1_000, 2_500] {
        let dir = tempfile::tempdir().unwrap();
        let store = sqlite(dir.path()).await;
        let disk = Arc::new(FullDisk {
            room: AtomicU64::new(room),
        });
        let settings = Settings {
            spool: Bounds {
                disk: disk.clone(),
                ..Bounds::default()
            },
            ..brisk()
        };
        let ledger = Ledger::open(dir.path(), store.clone(), settings).unwrap();
        for n in 0..50 {
            ledger.append(record(&format!("r{n}"))).unwrap();
        }
        let stats = ledger.stats();
        assert!(stats.spool_errors > 0 && !stats.healthy, "room {room}: {stats:?}");
        assert!(
            ledger.drain(LONG).await,
            "straight to the store: {:?}",
            ledger.stats()
        );
        disk.room.store(1 << 30, SeqCst);
        for n in 50..100 {
            ledger.append(record(&format!("r{n}"))).unwrap();
        }
        assert!(ledger.drain(LONG).await);
        assert_eq!(ids(&*store).await, named(0..100));
        assert!(ledger.stats().healthy);
        let report = check(dir.path(), &*store, LONG).await.unwrap();
        assert!(report.is_sound(), "room {room}: {report}");
    }
}

#[tokio::test]
async fn disk_and_memory_full_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FullDisk {
        room: AtomicU64::new(0),
    });
    let settings = Settings {
        batch_records: 1,
        spool: Bounds {
            disk: disk.clone(),
            memory_records: 3,
            ..Bounds::default()
        },
        ..brisk()
    };
    let ledger = Ledger::open(dir.path(), away().await, settings).unwrap();
    let kept = (0..10)
        .filter(|n| ledger.append(record(&format!("r{n}"))).is_ok())
        .count() as u64;
    // One more than fit may be in the writer's hands.
    assert!((3..=4).contains(&kept), "{kept}");
    let stats = ledger.stats();
    assert_eq!((stats.pending_records, stats.lost), (kept, 10 - kept));
    assert_eq!(unlanded(&ledger, KeyHash::of("sk-a")), 1_500 * kept as i64);
}

#[tokio::test]
async fn the_check_sees_both_directions() {
    let server = postgres::shared();
    let url = server.database();
    let name = url.rsplit('/').next().unwrap();
    let store = open(&url).await;
    store.ready().await;
    store.insert_key(&key("sk-a")).await.unwrap();
    let rows: Vec<Record> = (0..10)
        .map(|n| Record {
            model_group: format!("m{}", n % 2),
            ..record(&format!("r{n}"))
        })
        .collect();
    store.append(&rows).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let look = async || -> Report { check(dir.path(), &*store, LONG).await.unwrap() };
    let report = look().await;
    assert!(report.is_sound() && report.rows == 10, "{report}");
    let what = |r: &Report| {
        r.differences
            .iter()
            .map(|d| d.what.clone())
            .collect::<Vec<_>>()
            .join("; ")
    };

    server.sql(name, "DELETE FROM tk_daily WHERE model_group = 'm1'");
    let report = look().await;
    assert_eq!(report.differences.len(), 1, "rows without a sum: {report}");
    assert!(what(&report).contains("day 2026-11-20") && what(&report).contains("model m1"));
    assert_eq!(report.differences[0].rows.requests, 5);

    server.sql(name, "DELETE FROM tk_ledger WHERE model_group = 'm0'");
    let report = look().await;
    assert!(what(&report).contains("model m0"), "a sum without rows: {report}");
    assert!(
        what(&report).contains("user alice") && what(&report).contains("key "),
        "{report}"
    );
    assert!(report.to_string().ends_with("not sound"));
    let told = report.to_json();
    assert_eq!(told["sound"], false);
    assert_eq!(told["rows"], report.rows);
}
