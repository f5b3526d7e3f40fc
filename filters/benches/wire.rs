//! What finding fields in request bodies and splitting streams costs: run with
//! `cargo bench -p tollkeeper-filters --bench wire`.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use filters::wire::{multipart, peek, splice, sse};
use std::hint::black_box;

const WANTED: &[&str] = &[
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "user",
    "n",
];

fn chat() -> Vec<u8> {
    let turn = r#"{"role":"user","content":"What is the capital of France, and why is it \"Paris\"?\n"}"#;
    let tail = r#""temperature":0.7,"stream":true,"stream_options":{"include_usage":true},"max_tokens":256"#;
    format!(
        r#"{{"model":"fast","messages":[{}],{tail}}}"#,
        [turn; 10].join(",")
    )
    .into_bytes()
}

fn image(len: usize) -> Vec<u8> {
    let content = format!(
        r#"[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{}"}}}}]"#,
        "iVBORw0K".repeat(len / 8)
    );
    format!(r#"{{"messages":[{{"role":"user","content":{content}}}],"model":"vision"}}"#).into_bytes()
}

fn bodies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scan");
    let text = format!(r#"{{"model":"a","input":"{}"}}"#, "안녕하세요 세계 ".repeat(4000)).into_bytes();
    for (name, body) in [
        ("chat 1 KB", chat()),
        ("hangul 92 KB", text),
        ("image 30 MB", image(30 << 20)),
    ] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| peek::scan(black_box(&body), WANTED, peek::DEFAULT_DEPTH).expect("it is JSON"));
        });
    }
    group.finish();

    let body = Bytes::from(chat());
    criterion.bench_function("scan and splice the model, chat 1 KB", |bench| {
        bench.iter(|| {
            let object = peek::scan(black_box(&body), WANTED, peek::DEFAULT_DEPTH).expect("it is JSON");
            let model = [("model", Bytes::from_static(b"\"gpt-4.1-mini\""))];
            splice::apply(&body, splice::object_edits(&body, &object, &model, &[], &[])).expect("ranges fit")
        });
    });
}

fn streams(criterion: &mut Criterion) {
    let chunk = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"fast","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}"#;
    let burst: Bytes = sse::event(chunk.as_bytes()).repeat(50).into();
    let mut group = criterion.benchmark_group("sse, 50 events");
    group.throughput(Throughput::Elements(50));
    let mut splitter = sse::Splitter::default();
    group.bench_function("in one chunk", |bench| {
        bench.iter(|| splitter.push(burst.clone(), |event| drop(black_box(event))));
    });
    group.bench_function("in one chunk, with data", |bench| {
        bench.iter(|| {
            splitter.push(burst.clone(), |event| {
                black_box(sse::data(&event));
            })
        });
    });
    group.bench_function("in chunks of 100 bytes", |bench| {
        let chunks = || {
            (0..burst.len())
                .step_by(100)
                .map(|at| burst.slice(at..burst.len().min(at + 100)))
                .collect()
        };
        let push = |chunks: Vec<Bytes>| {
            let mut splitter = sse::Splitter::default();
            chunks
                .into_iter()
                .for_each(|chunk| splitter.push(chunk, |event| drop(black_box(event))));
        };
        bench.iter_batched(chunks, push, BatchSize::SmallInput);
    });
    group.finish();
}

fn forms(criterion: &mut Criterion) {
    let file: Vec<u8> = (0..25u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let head = "--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n";
    let tail = "\r\n--b0undary\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b0undary--\r\n";
    let form = [head.as_bytes(), &file, tail.as_bytes()].concat();
    let mut group = criterion.benchmark_group("multipart");
    group.throughput(Throughput::Bytes(form.len() as u64));
    group.bench_function("audio 25 MB", |bench| {
        bench.iter(|| {
            multipart::scan(black_box(&form), "b0undary", multipart::Limits::default()).expect("it is a form")
        });
    });
    group.finish();
}

criterion_group!(wire, bodies, streams, forms);
criterion_main!(wire);
