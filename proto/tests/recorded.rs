//! The bytes of every message as a release sent them: a later build must read them as they were meant.
//!
//! One file a protocol in `tests/recorded/`, one line a message. `CASCADIA_RECORD=1 cargo test -p cascadia-proto` writes
//! the file of the current protocol; a file of an earlier one is never written again.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::LazyLock;

use cascadia_proto::v1::*;
use prost::Message as ProstMessage;

type Reads = dyn Fn(&[u8]) -> Result<(), String>;

/// A message by name: its bytes now, and whether bytes of old mean the same.
struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    reads: Box<Reads>,
}

fn sample<M: ProstMessage + Default + PartialEq + Debug + 'static>(name: &'static str, message: M) -> Sample {
    let bytes = message.encode_to_vec();
    let reads = move |recorded: &[u8]| match M::decode(recorded) {
        Ok(read) if read == message => Ok(()),
        Ok(read) => Err(format!("{name} was {message:?}\n and is read as {read:?}")),
        Err(error) => Err(format!("{name} cannot be read: {error}")),
    };
    Sample { name, bytes, reads: Box::new(reads) }
}

macro_rules! samples {
    ($($name:ident $fields:tt),* $(,)?) => { vec![$(sample(stringify!($name), $name $fields)),*] };
}

fn parameters() -> Parameters {
    Parameters {
        strategy: "speculative_cascade".into(),
        rule: "bild".into(),
        alpha: Some(0.25),
        coupling: "maximal".into(),
        bild: Some(bild()),
        typical: Some(typical()),
        temperature: Some(0.7),
        top_k: Some(40),
        top_p: Some(0.9),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        presence_penalty: Some(0.5),
        frequency_penalty: Some(-0.5),
        logit_bias: vec![bias()],
        banned: vec![9, 300],
        seed: Some(u64::MAX),
        max_tokens: Some(128),
        stop: vec!["\n\n".into(), "Zürich".into()],
        stop_token_ids: vec![2],
        ignore_eos: true,
        draft_length: Some(5),
        strict_first_tokens: Some(3),
        logprobs: Some(2),
        wire_top_k: Some(64),
        on_expert_loss: OnExpertLoss::Drafter.into(),
        on_drafter_loss: OnDrafterLoss::Wait.into(),
    }
}

fn bild() -> BildParameters {
    BildParameters { fallback: 0.4, rollback: 3.0 }
}

fn typical() -> TypicalParameters {
    TypicalParameters { epsilon: 0.09, delta: 0.3 }
}

fn bias() -> LogitBias {
    LogitBias { token: 7, bias: -1.5 }
}

fn message() -> Message {
    Message { role: "user".into(), content: "Grüezi".into() }
}

fn prompt() -> Prompt {
    Prompt { kind: Some(prompt::Kind::Messages(Messages { messages: vec![message()] })) }
}

fn fingerprints() -> Fingerprints {
    Fingerprints { drafter: "d0".into(), expert: "e0".into(), tokenizer: "t0".into(), row_exact: true }
}

fn alternative() -> Alternative {
    Alternative { token: 11, logprob: -0.25 }
}

fn logprobs() -> TokenLogprobs {
    TokenLogprobs { expert: Some(-0.5), drafter: Some(-1.0), top: vec![alternative()] }
}

fn tokens() -> Tokens {
    Tokens {
        choice: 1,
        position: 1 << 33,
        ids: vec![1, 70_000],
        text: "ab".into(),
        provenance: vec![Provenance::Accepted.into(), Provenance::Deferred.into()],
        logprobs: vec![logprobs()],
        more: true,
        pieces: Vec::new(),
    }
}

fn usage() -> Usage {
    Usage { prompt_tokens: 12, completion_tokens: 34, cached_tokens: 8 }
}

fn speculation() -> Speculation {
    Speculation {
        blocks: 1,
        drafted: 2,
        accepted: 3,
        relaxed: 4,
        deferred: 5,
        expert_passes: 6,
        moves: 7,
        stale_blocks: 8,
        score: Some(-0.75),
        outcomes: Vec::new(),
    }
}

fn finished() -> Finished {
    Finished {
        reason: FinishReason::Stop.into(),
        usage: Some(usage()),
        speculation: Some(speculation()),
        reproducible: true,
        stop_string: Some("\n\n".into()),
        stop_token: Some(2),
    }
}

fn started() -> Started {
    Started {
        request_id: "r".into(),
        session: "00ff".into(),
        model: "m".into(),
        seed: 42,
        parameters: Some(parameters()),
        prompt_tokens: 12,
        fingerprints: Some(fingerprints()),
        drafter: "drafter-1".into(),
        expert: "expert-1".into(),
    }
}

fn served() -> ServedModel {
    ServedModel {
        name: "m".into(),
        drafters: vec!["drafter-1".into()],
        experts: vec!["expert-1".into()],
        tokenizer_fingerprint: "t0".into(),
    }
}

fn load() -> MemberLoad {
    MemberLoad { sessions: 1, queued_tokens: 2, running_tokens: 3, kv_pages_free: 4, kv_pages: 5, batch_occupancy: 0.5 }
}

fn member() -> Member {
    Member {
        id: "expert-1".into(),
        role: "expert".into(),
        state: "ready".into(),
        address: "h:1".into(),
        admin_address: "h:2".into(),
        models: vec!["m".into()],
        fingerprints: vec!["e0".into()],
        instance: u64::MAX - 1,
        load: Some(load()),
        failing: false,
    }
}

fn pair() -> Pair {
    Pair {
        model: "m".into(),
        drafter_fingerprint: "d0".into(),
        expert_fingerprint: "e0".into(),
        drafters: 2,
        experts: 1,
    }
}

fn range() -> ProtocolRange {
    ProtocolRange { min: 1, max: 1 }
}

fn key() -> SessionKey {
    SessionKey { session: (0..16).collect(), epoch: (3 << 32) + 2, secret: Vec::new() }
}

fn resolved() -> Resolved {
    Resolved { parameters: Some(parameters()), seed: 42, choice: 1, default_max_tokens: false }
}

fn node_ref() -> NodeRef {
    NodeRef { id: "expert-1".into(), address: "h:1".into(), fingerprint: "e0".into() }
}

fn run_open() -> RunOpen {
    RunOpen {
        protocol: Some(range()),
        key: Some(key()),
        model: "m".into(),
        resolved: Some(resolved()),
        tenant: "t".into(),
        priority: -1,
        cache_salt: "s".into(),
        remaining_ms: 600_000,
        prompt: Some(prompt()),
        continued: Some(Continued { prompt_tokens: 12, history_tokens: 20, handed_over: true }),
        expert: Some(node_ref()),
        pinned: Some(fingerprints()),
        request_id: "r".into(),
        age_ms: 77,
        cluster: String::new(),
    }
}

fn verify_open() -> VerifyOpen {
    VerifyOpen {
        protocol: Some(range()),
        key: Some(key()),
        model: "m".into(),
        resolved: Some(resolved()),
        tenant: "t".into(),
        priority: 3,
        cache_salt: "s".into(),
        remaining_ms: 1,
        prompt_tokens: 12,
        history_tokens: 20,
        pinned_fingerprint: "e0".into(),
        tokenizer_fingerprint: "t0".into(),
        age_ms: 78,
        cluster: String::new(),
    }
}

fn draft() -> Draft {
    Draft {
        token: 5,
        q: 0.5,
        max_q: 0.75,
        entropy_q: 1.25,
        kept: true,
        support_ids: vec![5, 6],
        support_q: vec![0.5, 0.5],
    }
}

fn block() -> Block {
    Block {
        epoch: 2,
        given_from: 18,
        given: vec![1, 2],
        base: 20,
        tail: u64::MAX / 3,
        drafts: vec![draft()],
        score_given: true,
    }
}

fn score() -> Score {
    Score { relaxed: true, expert_logprob: Some(-0.5), top: vec![alternative()] }
}

fn hint() -> LoadHint {
    LoadHint { queued_tokens: 1, batch_sessions: 2, batch_tokens: 3 }
}

fn verdict() -> Verdict {
    Verdict { epoch: 2, base: 20, accepted: 1, replacement: Some(0), scores: vec![score()], load: Some(hint()) }
}

fn samples() -> Vec<Sample> {
    let moved = || Moved { expert: Some(node_ref()), reason: MoveReason::Loss.into(), epoch: 9, failed: Vec::new() };
    let mut samples = samples![
        GenerateRequest {
            model: "m".into(),
            prompt: Some(prompt()),
            parameters: Some(parameters()),
            request_id: "r".into(),
            tenant: "t".into(),
            conversation: "c".into(),
            priority: -2,
            timeout_ms: Some(1000),
            cache_salt: Some(String::new()),
            choice: 0,
        },
        Messages { messages: vec![message()] },
        TokenIds { ids: vec![0, 1, 151_935] },
        GenerateResponse { event: Some(generate_response::Event::Tokens(tokens())) },
        ListModelsRequest {},
        ListModelsResponse { models: vec![served()] },
        ClusterStatusRequest {},
        ClusterStatusResponse { revision: 7, members: vec![member()], pairs: vec![pair()], router: "router-1".into() },
        History { ids: vec![1, 2, 3] },
        RunRequest { message: Some(run_request::Message::Open(run_open())) },
        Continued { prompt_tokens: 12, history_tokens: 20, handed_over: true },
        RunResponse { message: Some(run_response::Message::Moved(moved())) },
        Opened { protocol: 1, fingerprints: Some(fingerprints()), prompt_tokens: 12, ..Default::default() },
        Handover { score: -1.5, speculation: Some(speculation()) },
        Move { reason: MoveReason::Drain.into() },
        VerifyRequest { message: Some(verify_request::Message::Block(block())) },
        VerifyResponse { message: Some(verify_response::Message::Verdict(verdict())) },
        Held {
            protocol: 1,
            n: 20,
            slots: 2,
            fingerprint: "e0".into(),
            row_exact: true,
            context: 4096,
            cluster: String::new(),
        },
        Stale { epoch: 2, base: 20, committed: 19, tail: 5, reason: StaleReason::Tail.into() },
        WatchRequest { watcher: "router-1".into(), cluster: String::new() },
        NodeStatus {
            instance: 9,
            state: NodeState::Draining.into(),
            progress: 10,
            queued_tokens: 11,
            running_tokens: 12,
            sessions: 13,
            kv_pages: 14,
            kv_pages_free: 15,
            batch_occupancy: 0.25,
            longest_layer_us: 16,
            sessions_waiting: 0,
            tokens_waiting: 0,
        },
    ];
    // What joined later has a line of its own: the older one says what those who do not know it send.
    let outcome = || BlockOutcome { drafted: 6, accepted: 4, blocks: 300 };
    let piece = || Piece { token: 70_000, bytes: vec![0xe2, 0x82], special: true };
    samples.extend([
        sample("GenerateRequest+choice", GenerateRequest { model: "m".into(), choice: 2, ..Default::default() }),
        sample("Speculation+outcomes", Speculation { outcomes: vec![outcome()], ..speculation() }),
        sample("Tokens+pieces", Tokens { pieces: vec![piece()], ..tokens() }),
        sample(
            "NodeStatus+waiting",
            NodeStatus { sessions: 13, sessions_waiting: 17, tokens_waiting: 1800, ..NodeStatus::default() },
        ),
        sample("RunOpen+cluster", RunOpen { cluster: "blue".into(), ..run_open() }),
        sample("Opened+cluster", Opened { protocol: 1, cluster: "blue".into(), ..Default::default() }),
        sample("VerifyOpen+cluster", VerifyOpen { cluster: "blue".into(), ..verify_open() }),
        sample("Held+cluster", Held { protocol: 1, cluster: "blue".into(), ..Default::default() }),
        sample("WatchRequest+cluster", WatchRequest { watcher: "router-1".into(), cluster: "blue".into() }),
        sample("SessionKey+secret", SessionKey { secret: (16..32).collect(), ..key() }),
        sample("Opened+room", Opened { prompt_tokens: 12, vocabulary: 151_936, context: 4096, ..Default::default() }),
        sample("BlockOutcome", outcome()),
        sample("Piece", piece()),
    ]);
    samples.extend([
        sample("Prompt", prompt()),
        sample("Message", message()),
        sample("Parameters", parameters()),
        sample("BildParameters", bild()),
        sample("TypicalParameters", typical()),
        sample("LogitBias", bias()),
        sample("Started", started()),
        sample("KeepRequest", KeepRequest { sessions: vec![vec![7; 16]] }),
        sample("KeepResponse", KeepResponse {}),
        sample("Fingerprints", fingerprints()),
        sample("Tokens", tokens()),
        sample("TokenLogprobs", logprobs()),
        sample("Alternative", alternative()),
        sample("Finished", finished()),
        sample("Usage", usage()),
        sample("Speculation", speculation()),
        sample("ServedModel", served()),
        sample("Member", member()),
        sample("MemberLoad", load()),
        sample("Pair", pair()),
        sample("ProtocolRange", range()),
        sample("SessionKey", key()),
        sample("Resolved", resolved()),
        sample("RunOpen", run_open()),
        sample("NodeRef", node_ref()),
        sample("Moved", moved()),
        sample("VerifyOpen", verify_open()),
        sample("Block", block()),
        sample("Draft", draft()),
        sample("Verdict", verdict()),
        sample("Score", score()),
        sample("LoadHint", hint()),
    ]);
    samples
}

fn file() -> PathBuf {
    let protocol = cascadia_proto::PROTOCOL.1;
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recorded/protocol_{protocol}.hex"))
}

/// What is recorded, written first where that was asked for.
static RECORDED: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    if std::env::var_os("CASCADIA_RECORD").is_some() {
        let lines: BTreeMap<_, _> = samples().into_iter().map(|sample| (sample.name, sample.bytes)).collect();
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text: String = lines.into_iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
        std::fs::write(file(), text).expect("the recording can be written");
    }
    let text = std::fs::read_to_string(file()).expect("the recording is there; CASCADIA_RECORD=1 writes it");
    let bytes = |hex: &str| {
        let digits = (0..hex.len()).step_by(2);
        digits.map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
    };
    let lines = text.lines().map(|line| line.split_once(' ').expect("name hex"));
    lines.map(|(name, hex)| (name.to_owned(), bytes(hex))).collect()
});

#[test]
fn recorded_bytes_mean_what_they_meant() {
    let samples = samples();
    for sample in &samples {
        let bytes = RECORDED.get(sample.name).unwrap_or_else(|| panic!("{} is not recorded", sample.name));
        (sample.reads)(bytes).unwrap_or_else(|problem| panic!("{problem}"));
    }
    assert_eq!(RECORDED.len(), samples.len(), "a message that was recorded is gone");
}

/// As much of `google.protobuf.FileDescriptorSet` as names the messages.
#[derive(Clone, PartialEq, ProstMessage)]
struct DescriptorSet {
    #[prost(message, repeated, tag = "1")]
    files: Vec<FileDescriptor>,
}

#[derive(Clone, PartialEq, ProstMessage)]
struct FileDescriptor {
    #[prost(message, repeated, tag = "4")]
    messages: Vec<MessageDescriptor>,
}

#[derive(Clone, PartialEq, ProstMessage)]
struct MessageDescriptor {
    #[prost(string, tag = "1")]
    name: String,
}

#[test]
fn every_message_is_recorded() {
    let set = DescriptorSet::decode(cascadia_proto::DESCRIPTORS).unwrap();
    let names: Vec<String> = set.files.into_iter().flat_map(|file| file.messages).map(|message| message.name).collect();
    assert!(names.len() > 40);
    for name in names {
        assert!(RECORDED.contains_key(&name), "{name} is not recorded: add a sample with every field set");
    }
}
