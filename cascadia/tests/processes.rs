//! The cluster as separate processes with a real etcd: what the README's block shows.

mod real;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cascadia_core::limits;
use real::{
    PATIENCE, Process, cascadia, etcd, exchange, free_address, node, node_command, pair, ready, synthetic_command,
    wait_for,
};
use serde_json::Value;

fn generate(server: &str, more: &[&str]) -> Output {
    let question = "Mia has 7 apples. She buys 5 more. How many apples does Mia have now?";
    cascadia()
        .args(["generate", "--json", "--server", server, "--seed", "7", "--max-tokens", "60"])
        .args(more)
        .arg(question)
        .output()
        .expect("the binary runs")
}

fn answer(server: &str, more: &[&str]) -> Value {
    let output = generate(server, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn processes_meet_in_etcd_and_survive_each_other() {
    let etcd = etcd();
    let server = free_address();
    let _router = node("router", "router-1", &server, &etcd);
    let first = node("expert", "expert-1", &free_address(), &etcd);
    let _second = node("expert", "expert-2", &free_address(), &etcd);
    let drafter = node("drafter", "drafter-1", &free_address(), &etcd);
    let _other = node("drafter", "drafter-2", &free_address(), &etcd);
    let status = wait_for(&server, |status| ready(status, "expert") == 2 && ready(status, "drafter") == 2);
    assert_eq!(status["pairs"].as_array().expect("pairs").len(), 1);

    let greedy = ["--temperature", "0"];
    let expert = answer(&server, &[&greedy[..], &["--strategy", "expert"]].concat());
    let exact = answer(&server, &[&greedy[..], &["--strategy", "speculative"]].concat());
    assert_eq!(expert["text"], exact["text"]);
    assert_eq!(expert["token_ids"], exact["token_ids"]);
    assert!(exact["speculation"]["accepted"].as_u64().expect("a count") > 0);
    assert_eq!(
        exact["provenance"].as_array().expect("one a token").len(),
        exact["token_ids"].as_array().expect("ids").len()
    );
    let drawn = ["--temperature", "0.8"];
    assert_eq!(
        answer(&server, &[&drawn[..], &["--strategy", "expert"]].concat())["token_ids"],
        answer(&server, &[&drawn[..], &["--strategy", "speculative"]].concat())["token_ids"],
    );
    let lossy = ["--strategy", "speculative_cascade", "--rule", "token_v3", "--alpha", "0.7", "--temperature", "0"];
    let before = answer(&server, &lossy);

    // One of each dies without a word; what is left gives the same text, and etcd forgets the dead.
    drop(first);
    drop(drafter);
    assert_eq!(answer(&server, &lossy)["token_ids"], before["token_ids"]);
    wait_for(&server, |status| ready(status, "expert") == 1 && ready(status, "drafter") == 1);
    assert_eq!(answer(&server, &lossy)["token_ids"], before["token_ids"]);
}

#[test]
fn a_router_that_sees_an_expert_first_waits_for_its_drafter() {
    let etcd = etcd();
    let server = free_address();
    let _router = node("router", "router-1", &server, &etcd);
    let _expert = node("expert", "expert-1", &free_address(), &etcd);
    wait_for(&server, |status| ready(status, "expert") == 1);
    let lossy = ["--strategy", "speculative_cascade", "--rule", "token_v3", "--alpha", "0.7", "--temperature", "0"];
    let early = {
        let server = server.clone();
        std::thread::spawn(move || answer(&server, &lossy))
    };
    // Longer than one that has been there is waited for.
    std::thread::sleep(limits::MAY_COME_BACK * 3 / 2);
    let _drafter = node("drafter", "drafter-1", &free_address(), &etcd);
    let early = early.join().expect("answered");
    assert!(early["speculation"]["accepted"].as_u64().expect("a count") > 0);
    assert_eq!(early["token_ids"], answer(&server, &lossy)["token_ids"]);
}

#[test]
fn requests_for_a_model_that_a_young_router_has_not_seen_wait_for_its_expert() {
    let etcd = etcd();
    let [server, http, admin] = [free_address(), free_address(), free_address()];
    let mut router = node_command("router", "router-1", &server, &etcd);
    let _router = Process(router.args(["--http", &http, "--admin", &admin]).spawn().expect("the binary runs"));
    // With another model there, an unknown one is a wrong name.
    let mut other = synthetic_command("expert", "expert-1", &free_address(), &etcd, "length=none");
    let _other = Process(other.spawn().expect("the binary runs"));
    wait_for(&server, |status| ready(status, "expert") == 1);
    let over_grpc = std::thread::spawn(move || answer(&server, &["--model", "demo"]));
    let over_http = std::thread::spawn(move || {
        let body = r#"{"model": "demo:expert", "prompt": "Mia has 7 apples.", "max_tokens": 3}"#;
        let head = format!("Content-Type: application/json\r\nContent-Length: {}", body.len());
        exchange(&http, &format!("POST /v1/completions HTTP/1.0\r\n{head}\r\n\r\n{body}")).expect("an answer")
    });
    let waiting = "cascadia_num_requests_waiting{model_name=\"other\"} 2";
    let page = format!("GET /metrics HTTP/1.0\r\nHost: {admin}\r\n\r\n");
    while !exchange(&admin, &page).expect("a page").1.contains(waiting) {
        assert!(!over_grpc.is_finished() && !over_http.is_finished(), "not refused");
        std::thread::sleep(Duration::from_millis(20));
    }
    let _expert = node("expert", "expert-2", &free_address(), &etcd);
    over_grpc.join().expect("answered");
    let (head, body) = over_http.join().expect("answered");
    assert!(head.contains(" 200 "), "{head}\n{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["cascadia"]["strategy"], "expert", "the name's suffix is read when the name is known: {body}");
}

#[test]
fn a_cluster_whose_greeting_nobody_reads_serves() {
    let server = free_address();
    let mut command = cascadia();
    command.args(["up", "--synthetic", "length=none", "--listen", &server, "--http", "off"]);
    let mut up = Process(command.stdout(Stdio::piped()).spawn().expect("the binary runs"));
    drop(up.0.stdout.take());
    wait_for(&server, |status| ready(status, "drafter") > 0);
    // It greets as soon as it answers; what follows comes long after.
    answer(&server, &[]);
    assert!(up.ended().is_none(), "it serves");
}

#[test]
fn a_cluster_whose_log_nobody_takes_serves() {
    let server = free_address();
    let unread = |command: &mut Command| {
        let mut process = Process(command.stderr(Stdio::piped()).spawn().expect("the binary runs"));
        drop(process.0.stderr.take());
        process
    };
    let up = ["--log", "debug", "up", "--synthetic", "length=none", "--listen", &server, "--http", "off"];
    let mut up = unread(cascadia().args(up));
    wait_for(&server, |status| ready(status, "drafter") > 0);
    // What it refuses it also logs.
    let refused = String::from_utf8(generate(&server, &["--ban", "99999"]).stderr).expect("UTF-8");
    assert!(refused.contains("99999 is unknown"), "{refused}");
    up.signal("TERM");
    assert_eq!(up.wait(PATIENCE).code(), Some(0));
    let mut alone = unread(cascadia().args(["status", "--server", &server]));
    assert_eq!(alone.wait(PATIENCE).code(), Some(1), "it fails, and does not panic");
}

#[test]
fn what_ends_a_text_early_is_said_on_a_line_of_its_own() {
    let server = free_address();
    let mut up = cascadia();
    up.args(["up", "--synthetic", "length=none,expert.step=50ms", "--listen", &server, "--http", "off"]);
    let up = Process(up.spawn().expect("the binary runs"));
    wait_for(&server, |status| ready(status, "drafter") > 0);
    let mut asking = cascadia();
    asking.args(["generate", "--server", &server, "--max-tokens", "3000", "hello"]);
    asking.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut asking = Process(asking.spawn().expect("the binary runs"));
    let mut text = BufReader::new(asking.0.stdout.take().expect("piped"));
    assert!(!text.fill_buf().expect("text").is_empty());
    drop(up);
    let mut rest = String::new();
    text.read_to_string(&mut rest).expect("UTF-8");
    assert!(rest.ends_with('\n'), "{rest:?}");
    assert_eq!(asking.wait(PATIENCE).code(), Some(1));
    let mut said = String::new();
    asking.0.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains("connection to the router broke"), "{said}");
}

fn refusal(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    let line =
        text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error line in: {text}"));
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
    line.to_owned()
}

#[test]
fn what_cannot_work_is_said_in_one_sentence() {
    let nobody = free_address();
    assert!(refusal(cascadia().args(["generate", "--server", &nobody, "hello"])).contains(&nobody));
    assert!(refusal(cascadia().args(["status", "--server", &nobody])).contains(&nobody));
    // A node that starts while etcd is away waits for it, and says so.
    let mut waiting = cascadia();
    waiting
        .args(["router", "--listen", "127.0.0.1:0", "--http", "off", "--etcd", &format!("http://{nobody}")])
        .stderr(Stdio::piped());
    let mut waiting = Process(waiting.spawn().expect("the binary runs"));
    let said = BufReader::new(waiting.0.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let said = said.take(10).find(|line| line.contains("etcd does not answer")).expect("it says what it waits for");
    assert!(said.contains(&nobody) && said.contains("--etcd"), "{said}");
    drop(waiting);
    let listening = TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy = listening.local_addr().expect("bound").to_string();
    assert!(refusal(cascadia().args(["up", "--listen", &busy])).contains(&busy));

    let folder = std::env::temp_dir().join(format!("cascadia-broken-{}", std::process::id()));
    let up = |expert: &Path| {
        let mut command = cascadia();
        command.args(["up", "--listen", "127.0.0.1:0", "--http", "off", "--drafter-model"]).arg(pair().join("drafter"));
        command.arg("--expert-model").arg(expert);
        command
    };
    assert!(refusal(&mut up(&folder.join("nowhere"))).contains("nowhere"));
    // Truncated weights.
    std::fs::create_dir_all(&folder).expect("a folder");
    for entry in std::fs::read_dir(pair().join("expert")).expect("the shipped expert") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("copied");
    }
    let weights = folder.join("model.safetensors");
    let whole = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &whole[..whole.len() / 2]).expect("truncated");
    assert!(refusal(&mut up(&folder)).contains("model.safetensors"));
    std::fs::remove_file(&weights).expect("removed");
    assert!(refusal(&mut up(&folder)).contains("safetensors"));
    // Another tokenizer.
    std::fs::write(&weights, &whole).expect("whole again");
    let tokenizer = folder.join("tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).expect("a tokenizer");
    std::fs::write(&tokenizer, text.replacen("<|user|>", "<|wser|>", 2)).expect("changed");
    assert!(refusal(&mut up(&folder)).contains("tokenizer"));
    let _ = std::fs::remove_dir_all(&folder);
}
