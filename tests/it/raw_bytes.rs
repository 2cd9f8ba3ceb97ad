//! Whatever bytes are sent to `relance serve`: it neither panics nor grows, and
//! what it answers is a status and, where it refuses, the spec's error body.
//!
//! `RELANCE_RAW_CASES` says how many are sent and `RELANCE_SEED` which.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::serve::{Running, free_port, relance, until_ready};
use crate::support::{Space, catalog};

/// Connections at a time.
const AT_A_TIME: usize = 16;

/// How much memory may have grown from the first tenth of the cases to the last.
const GROWTH_BYTES: u64 = 48 * 1024 * 1024;

/// How long one answer may take. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

const PATHS: [&str; 11] = [
    "/v1/materialized_view/{id}/refresh",
    "/v1/table/{id}/refresh",
    "/v1/materialized_view/{id}/describe",
    "/v1/table/{id}/describe/",
    "/v1/jobs/describe",
    "/v1/jobs/list",
    "/v1/jobs/cancel",
    "/v1/jobs/pause",
    "/v1/jobs/resume",
    "/v1/jobs/query_events",
    "/openapi.yaml",
];

const PIECES: [&str; 30] = [
    "v",
    "src",
    "nope",
    "$",
    "%24",
    "%00",
    "%FF",
    "%C3%A9",
    "%E2%80%AE",
    "%F0%9F%92%A5",
    "%2F",
    "%2e%2e",
    "..",
    ".",
    "%25",
    "%",
    "%zz",
    "a",
    "\u{e9}",
    "+",
    " ",
    "%20",
    "%0A",
    "%5C",
    ":",
    "@",
    "~",
    "'",
    "\"",
    "{id}",
];

const VALUES: [&str; 28] = [
    "null",
    "true",
    "0",
    "-1",
    "1",
    "1.5",
    "1e400",
    "-0",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "\"\"",
    "\"v\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\u{202e}\u{1f4a5}\"",
    "[]",
    "{}",
    "[\"v\"]",
    "[null]",
    "[\"v\", 3]",
    "{\"a\": {}}",
    "tru",
    "\"unended",
    "NaN",
    "\"default\"",
    "\"../../x\"",
    "\"state = 'queued'\"",
];

const FIELDS: [&str; 22] = [
    "job_id",
    "limit",
    "filter",
    "page_token",
    "table",
    "state",
    "id",
    "src_version",
    "source_version",
    "full",
    "concurrency",
    "cluster",
    "manifest",
    "output_limit",
    "identity",
    "context",
    "expected_incarnation",
    "version",
    "",
    "job_id",
    "\\u0000",
    "unknown",
];

const SQL: [&str; 24] = [
    "state",
    "=",
    "'",
    "'x'",
    "(",
    ")",
    "not ",
    "and ",
    "or ",
    "in ",
    "like ",
    "between ",
    "1",
    "-",
    "select ",
    "null",
    "case ",
    "when ",
    "end ",
    "::int",
    "$1",
    "--",
    "/*",
    "repeat(state,9) ",
];

fn pick<'a>(random: &mut StdRng, all: &[&'a str]) -> &'a str {
    all.choose(random).copied().unwrap_or_default()
}

fn id(random: &mut StdRng) -> String {
    match random.random_range(0..10) {
        0..5 => (0..random.random_range(0..6))
            .map(|_| pick(random, &PIECES))
            .collect(),
        5 => "x".repeat(random.random_range(1..200_000)),
        6 => "$".repeat(random.random_range(1..2_000)),
        7 => "%41$".repeat(random.random_range(1..500)),
        _ => "v".to_string(),
    }
}

fn body(random: &mut StdRng) -> Vec<u8> {
    match random.random_range(0..12) {
        0 => Vec::new(),
        1 => (0..random.random_range(0..2_000))
            .map(|_| random.random())
            .collect(),
        2 => {
            let opening = pick(random, &["[", "{\"a\":", "[{\"job_id\":", "{\"id\":["]);
            opening.repeat(random.random_range(1..100_000)).into_bytes()
        }
        3 => {
            let depth = random.random_range(1..60_000);
            let text = format!("{{\"job_id\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
            text.into_bytes()
        }
        4 => {
            let size = random.random_range(1..3_000_000);
            format!("{{\"unknown\": \"{}\"}}", "x".repeat(size)).into_bytes()
        }
        5 => {
            let tokens = random.random_range(0..200);
            let filter: String = (0..tokens).map(|_| pick(random, &SQL)).collect();
            serde_json::json!({"job_id": "nope", "filter": filter})
                .to_string()
                .into_bytes()
        }
        kind => {
            let fields: Vec<String> = (0..random.random_range(0..6))
                .map(|_| format!("\"{}\": {}", pick(random, &FIELDS), pick(random, &VALUES)))
                .collect();
            let mut text = format!("{{{}}}", fields.join(", ")).into_bytes();
            // Half of these are then damaged.
            if kind % 2 == 0 {
                for _ in 0..random.random_range(1..4) {
                    let at = random.random_range(0..text.len());
                    match random.random_range(0..3) {
                        0 => text[at] = random.random(),
                        1 => text.truncate(at.max(1)),
                        _ => text.insert(at, random.random()),
                    }
                }
            }
            text
        }
    }
}

/// The bytes of one connection, and whether they end before they should.
fn request(random: &mut StdRng) -> (Vec<u8>, bool) {
    if random.random_range(0..20) == 0 {
        let mut noise: Vec<u8> = (0..random.random_range(1..5_000))
            .map(|_| random.random())
            .collect();
        if random.random() {
            noise.splice(0..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
        return (noise, true);
    }
    let path = pick(random, &PATHS).replace("{id}", &id(random));
    let method = match random.random_range(0..15) {
        0 => pick(
            random,
            &[
                "GET",
                "PUT",
                "DELETE",
                "HEAD",
                "TRACE",
                "p\u{f6}st",
                "",
                "OPTIONS",
            ],
        ),
        _ if path == "/openapi.yaml" => "GET",
        _ => "POST",
    };
    let query = match random.random_range(0..6) {
        0 => format!("?delimiter={}", pick(random, &PIECES)),
        1 => format!("?{}", pick(random, &PIECES)),
        _ => String::new(),
    };
    let body = body(random);
    let mut head = format!("{method} {path}{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for _ in 0..random.random_range(0..3) {
        head += match random.random_range(0..9) {
            0 => "content-type: text/plain\r\n",
            1 => "content-type: application/json; charset=utf-16\r\n",
            2 => "content-encoding: gzip\r\n",
            3 => "idempotency-key: a\r\n",
            4 => "idempotency-key: \u{e9} \u{1f4a5}\r\n",
            5 => "authorization: Bearer \u{e9}\r\n",
            6 => "x-api-key: \r\n",
            7 => "traceparent: 00-zz-zz-01\r\n",
            _ => "expect: 100-continue\r\n",
        };
    }
    let (length, broken) = match random.random_range(0..12) {
        0 => (format!("content-length: {}\r\n", body.len() + 10), true),
        1 => ("content-length: -1\r\n".to_string(), true),
        2 => ("transfer-encoding: chunked\r\n".to_string(), true),
        3 => (String::new(), true),
        _ => (format!("content-length: {}\r\n", body.len()), false),
    };
    let mut bytes = format!("{head}{length}\r\n").into_bytes();
    bytes.extend(body);
    if random.random_range(0..25) == 0 {
        bytes.truncate(random.random_range(0..bytes.len()));
        return (bytes, true);
    }
    (bytes, broken)
}

/// Sends the bytes and reads the answer, as far as there is one.
async fn exchange(address: SocketAddr, bytes: &[u8], broken: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    // A server that has refused need not read the rest.
    let _ = stream.write_all(bytes).await;
    if broken {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// Holds that an answer is one; gives its status.
fn judge(answer: &[u8], bytes: &[u8]) -> Option<u16> {
    let sent = || String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned();
    let mut rest = answer;
    while let Some(after) = rest.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n") {
        rest = after;
    }
    let text = String::from_utf8_lossy(rest);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|text| text.get(..3));
    let status: u16 = status?.parse().expect("a status");
    assert!(
        status < 500 || status == 501,
        "{status} to {}: {text}",
        sent()
    );
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    // What is no HTTP is refused before the API sees it, without a body; and a
    // HEAD has none.
    if status >= 400 && head.contains("content-type: application/json") && !body.is_empty() {
        let error: Value = serde_json::from_str(body)
            .unwrap_or_else(|error| panic!("{error} in the answer to {}: {text}", sent()));
        assert!(error["code"].is_u64(), "{error}");
        assert!(
            error["error"].as_str().is_some_and(|s| !s.is_empty()),
            "{error}"
        );
        assert!(error["instance"].is_string(), "{error}");
    }
    Some(status)
}

/// The process's own memory, in bytes.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.expect("a figure") * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_make_it_panic_or_grow() {
    let cases = number("RELANCE_RAW_CASES", 1_500);
    let seed = number("RELANCE_SEED", 1);
    let (space, folder) = tokio::join!(Space::new(), catalog());
    space.cluster("default").await;
    let log = tempfile::NamedTempFile::new().expect("a file");
    let (api, health) = (free_port(), free_port());
    let mut running = Running(
        relance()
            .args(["serve", "--rest", "--open-access"])
            .args(["--namespace", &space.namespace])
            .args(["--catalog", &format!("dir://{}", folder.path().display())])
            .args(["--listen", &format!("127.0.0.1:{api}")])
            .args(["--health-listen", &format!("127.0.0.1:{health}")])
            .stderr(log.reopen().expect("the file"))
            .spawn()
            .expect("starts"),
    );
    until_ready(health).await;
    let address = SocketAddr::from(([127, 0, 0, 1], api));
    let pid = running.0.id();
    let mut before = 0;
    let mut answered = std::collections::BTreeMap::<Option<u16>, u64>::new();
    let mut statuses = futures::stream::iter(0..cases)
        .map(|case| async move {
            let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(case));
            let (bytes, broken) = request(&mut random);
            let exchanged = tokio::time::timeout(PATIENCE, exchange(address, &bytes, broken));
            let answer = exchanged.await.unwrap_or_else(|_| {
                let sent = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]);
                panic!("case {case} of seed {seed} is not answered: {sent}")
            });
            judge(&answer, &bytes)
        })
        .buffer_unordered(AT_A_TIME);
    let mut done = 0;
    while let Some(status) = statuses.next().await {
        *answered.entry(status).or_default() += 1;
        done += 1;
        if done == cases / 10 {
            before = memory(pid);
        }
    }
    let after = memory(pid);
    println!(
        "{cases} cases of seed {seed}: answers {answered:?}; RssAnon {} MiB after a tenth, {} MiB at the end",
        before >> 20,
        after >> 20
    );
    assert!(running.0.try_wait().expect("a child").is_none(), "it runs");
    until_ready(health).await;
    let log = std::fs::read_to_string(log.path()).expect("text");
    assert!(!log.contains("panicked"), "{log}");
    assert!(
        after < before + GROWTH_BYTES,
        "grew from {before} to {after} bytes"
    );
    for expected in [Some(200), Some(400), Some(404)] {
        assert!(answered.contains_key(&expected), "{answered:?}");
    }
}
