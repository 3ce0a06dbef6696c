use super::*;
use proptest::prelude::*;
use prost::Message as _;

fn probability() -> impl Strategy<Value = f32> {
    0.0_f32..=1.0
}

fn a_draft() -> impl Strategy<Value = Draft> {
    let support = prop::collection::btree_map(any::<TokenId>(), probability(), 0..6);
    (any::<TokenId>(), probability(), probability(), 0.0_f32..12.0, any::<bool>(), support).prop_map(
        |(token, q, max_q, entropy_q, kept, support)| Draft {
            token,
            q,
            max_q,
            entropy_q,
            kept,
            support: support.into_iter().collect(),
        },
    )
}

fn a_block() -> impl Strategy<Value = DraftBlock> {
    let given = prop::collection::vec(any::<TokenId>(), 0..4);
    let drafts = prop::collection::vec(a_draft(), 1..5);
    (any::<u64>(), 0..1_000_000_usize, given, any::<u64>(), drafts, any::<bool>()).prop_map(
        |(epoch, given_from, given, tail, drafts, score_given)| DraftBlock {
            epoch: Epoch(epoch),
            given_from,
            base: given_from + given.len(),
            given,
            tail,
            drafts,
            score_given,
        },
    )
}

fn a_score() -> impl Strategy<Value = Score> {
    let top = prop::collection::vec((any::<TokenId>(), -30.0_f32..0.0), 0..4);
    (any::<bool>(), prop::option::of(-30.0_f32..0.0), top).prop_map(|(relaxed, logprob, top)| Score {
        relaxed,
        logprob,
        top,
    })
}

fn a_verdict() -> impl Strategy<Value = Verdict> {
    let scores = prop::collection::vec(a_score(), 0..4);
    (any::<u64>(), any::<u32>(), 0..65_usize, prop::option::of(any::<TokenId>()), scores).prop_map(
        |(epoch, base, accepted, replacement, scores)| Verdict {
            epoch: Epoch(epoch),
            base: base as usize,
            accepted,
            replacement,
            scores,
        },
    )
}

proptest! {
    #[test]
    fn blocks_come_back(sent in a_block()) {
        let bytes = block_message(&sent).encode_to_vec();
        prop_assert_eq!(block(v1::Block::decode(bytes.as_slice()).unwrap()).unwrap(), sent);
    }

    #[test]
    fn verdicts_come_back(sent in a_verdict()) {
        let bytes = verdict(&sent, None).encode_to_vec();
        prop_assert_eq!(verdict_of(v1::Verdict::decode(bytes.as_slice()).unwrap()).unwrap(), sent);
    }

    #[test]
    fn refusals_come_back(epoch: u64, base: u32, committed: u32, tail: u64, reason in 0..3) {
        let reason = [StaleReason::Epoch, StaleReason::Base, StaleReason::Tail][reason as usize];
        let sent = Stale { epoch: Epoch(epoch), base: base as usize, committed: committed as usize, tail, reason };
        let bytes = stale(&sent).encode_to_vec();
        prop_assert_eq!(stale_of(v1::Stale::decode(bytes.as_slice()).unwrap()).unwrap(), sent);
    }

    #[test]
    fn keys_come_back(session: u128, epoch: u64, secret: Option<u128>) {
        let sent = (SessionId(session), Epoch(epoch));
        let secret = secret.map(SessionSecret::new);
        let key = session_key_message(sent.0, sent.1, secret.as_ref());
        prop_assert_eq!(session_key(&key).unwrap(), sent);
        let bytes = |secret: &Option<SessionSecret>| secret.as_ref().map(|secret| secret.bytes().to_vec());
        prop_assert_eq!(bytes(&session_secret(&key).unwrap()), bytes(&secret));
    }

    #[test]
    fn histories_come_back_in_bounded_pieces(length in 0..9_000_usize) {
        let ids: Vec<TokenId> = (0..length as u32).collect();
        let pieces = histories(&ids);
        prop_assert!(pieces.iter().all(|piece| (1..=limits::HISTORY_IDS).contains(&piece.ids.len())));
        prop_assert_eq!(pieces.into_iter().flat_map(|piece| piece.ids).collect::<Vec<_>>(), ids);
    }

    /// No bytes make a conversion panic.
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(message) = v1::Block::decode(bytes.as_slice()) {
            let _ = block(message);
        }
        if let Ok(message) = v1::Verdict::decode(bytes.as_slice()) {
            let _ = verdict_of(message);
        }
        if let Ok(message) = v1::Stale::decode(bytes.as_slice()) {
            let _ = stale_of(message);
        }
    }
}

#[test]
fn no_text_shows_a_secret() {
    let secret = SessionSecret::new(0x6162_6364_6566_6768_696a_6b6c_6d6e_6f70);
    let key = session_key_message(SessionId(1), Epoch(7), Some(&secret));
    let open = v1::RunOpen { key: Some(key.clone()), ..v1::RunOpen::default() };
    let verify = v1::VerifyOpen { key: Some(key.clone()), ..v1::VerifyOpen::default() };
    for shown in [format!("{secret:?}"), format!("{key:?}"), format!("{key:#?}"), format!("{open:?} {verify:?}")] {
        // As text, as numbers in a list, as hex.
        for trace in ["abcd", "97, 98", "97,\n", "61626364", "6162"] {
            assert!(!shown.contains(trace), "{shown}");
        }
    }
    assert!(format!("{key:?}").contains("epoch: 7"));
}

fn good() -> v1::Block {
    let draft =
        v1::Draft { token: 3, q: 0.5, support_ids: vec![1, 3], support_q: vec![0.5, 0.5], ..v1::Draft::default() };
    v1::Block {
        given_from: 7,
        given: vec![4],
        base: 8,
        drafts: vec![v1::Draft::default(), draft],
        ..v1::Block::default()
    }
}

#[test]
fn a_bad_block_is_refused_by_field() {
    assert!(block(good()).is_ok());
    type Case = (&'static str, fn(&mut v1::Block));
    let cases: [Case; 9] = [
        ("block.base", |b| b.base = 9),
        ("block.base", |b| b.given_from = 8),
        ("block.given_from", |b| (b.given_from, b.base) = (u64::MAX, 0)),
        ("block.drafts", |b| (b.drafts, b.given, b.base) = (Vec::new(), Vec::new(), 7)),
        ("block.drafts[1].q", |b| b.drafts[1].q = f32::NAN),
        ("block.drafts[1].entropy_q", |b| b.drafts[1].entropy_q = f32::INFINITY),
        ("block.drafts[1].support_q", |b| b.drafts[1].support_q.truncate(1)),
        ("block.drafts[1].support_q", |b| b.drafts[1].support_q[0] = -0.5),
        ("block.drafts[1].support_ids", |b| b.drafts[1].support_ids = vec![3, 3]),
    ];
    for (field, spoil) in cases {
        let mut bad = good();
        spoil(&mut bad);
        let error = block(bad).unwrap_err();
        // Positions are as wide as the machine's: the first of the two fields is named on either.
        assert!(error.field == field || field == "block.given_from", "{error}");
    }
}

#[test]
fn other_bad_messages_are_refused_by_field() {
    let key = v1::SessionKey { session: vec![0; 15], epoch: 1, secret: b"seventeen letters".to_vec() };
    assert_eq!(session_key(&key).unwrap_err().to_string(), "key.session: has 15 bytes, a session id has 16");
    let error = session_secret(&key).unwrap_err().to_string();
    assert_eq!(error, "key.secret: has 17 bytes, a session's secret has 16");
    assert_eq!(stale_of(v1::Stale { reason: 77, ..v1::Stale::default() }).unwrap_err().field, "stale.reason");
    let scores = vec![v1::Score { expert_logprob: Some(f32::NAN), ..v1::Score::default() }];
    assert_eq!(verdict_of(v1::Verdict { scores, ..v1::Verdict::default() }).unwrap_err().field, "verdict.scores[0]");
    assert_eq!(prompt(Some(v1::Prompt::default())).unwrap_err().field, "prompt");
    let ids = v1::Prompt { kind: Some(v1::prompt::Kind::Ids(v1::TokenIds { ids: vec![1, 2] })) };
    assert_eq!(prompt(Some(ids)).unwrap(), Prompt::Ids(vec![1, 2]));
}

#[test]
fn an_expert_that_contradicts_its_opening_is_refused_by_field() {
    let open = v1::VerifyOpen { history_tokens: 9, pinned_fingerprint: "f".into(), ..v1::VerifyOpen::default() };
    let good = || v1::Held { n: 8, slots: 2, fingerprint: "f".into(), context: 9, ..v1::Held::default() };
    assert_eq!(check_held(&good(), &open), Ok(()));
    assert_eq!(check_held(&v1::Held { context: 0, ..good() }, &open), Ok(()), "it does not say");
    let unpinned = v1::VerifyOpen { pinned_fingerprint: String::new(), ..open.clone() };
    assert_eq!(check_held(&v1::Held { fingerprint: "any".into(), ..good() }, &unpinned), Ok(()));
    for (field, bad) in [
        ("held.n", v1::Held { n: 10, ..good() }),
        ("held.context", v1::Held { context: 8, ..good() }),
        ("held.fingerprint", v1::Held { fingerprint: "another".into(), ..good() }),
        ("held.fingerprint", v1::Held { fingerprint: String::new(), ..good() }),
    ] {
        assert_eq!(check_held(&bad, &open).unwrap_err().field, field);
    }
}
