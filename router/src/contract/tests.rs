use cascadia_node::telemetry::TraceContext;
use cascadia_proto::prompt::EncodedPrompt;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{Message, Messages, Parameters, Prompt, TokenIds};
use tokio::time::Instant;

use super::*;
use crate::config::RouterConfig;
use crate::request::Request;

fn admitted(prompt: Kind, parameters: Parameters) -> AdmittedRequest {
    let prompts = vec![EncodedPrompt::from(&Prompt { kind: Some(prompt) })];
    let asked = Request { prompts, answers: 1, parameters, ..Request::default() };
    let admitted =
        AdmittedRequest::of(asked, "m", Instant::now(), &TraceContext::default(), &RouterConfig::default()).unwrap();
    admitted.into_iter().next().expect("one session")
}

fn text(parameters: Parameters) -> AdmittedRequest {
    admitted(Kind::Text("What is 2 + 2?".into()), parameters)
}

fn eight_tokens() -> Parameters {
    Parameters { max_tokens: Some(8), ..Parameters::default() }
}

fn opened(prompt_tokens: u32) -> v1::Opened {
    v1::Opened { protocol: 1, prompt_tokens, vocabulary: 100, context: 64, ..v1::Opened::default() }
}

/// A session whose owner has opened it with this prompt.
fn begun<'a>(admitted: &'a AdmittedRequest, prompt: &[TokenId]) -> (Contract<'a>, Transcript) {
    let (mut contract, mut transcript) = (Contract::new(admitted), Transcript::new(0));
    contract.opened(&opened(prompt.len() as u32), &transcript).unwrap();
    transcript.announce(prompt.len());
    contract.history(prompt, &transcript).unwrap();
    transcript.prompt(prompt).unwrap();
    (contract, transcript)
}

fn tokens(ids: &[TokenId]) -> v1::Tokens {
    let provenance = vec![v1::Provenance::Accepted.into(); ids.len()];
    v1::Tokens { position: 2, ids: ids.to_vec(), text: "text".into(), provenance, ..v1::Tokens::default() }
}

fn scored(ids: &[TokenId], logprob: f32) -> v1::Tokens {
    let alternative = v1::Alternative { token: 3, logprob };
    let logprobs = v1::TokenLogprobs { expert: Some(logprob), drafter: None, top: vec![alternative] };
    let piece = v1::Piece { token: 3, bytes: b"three".to_vec(), special: false };
    v1::Tokens { logprobs: vec![logprobs; ids.len()], pieces: vec![piece], ..tokens(ids) }
}

#[test]
fn a_prompt_has_a_length_that_it_can_have() {
    let messages = vec![Message { role: "user".into(), content: "Hi".into() }; 3];
    for (prompt, least, most) in [
        (Kind::Text("abcd".into()), 1, 4 * IDS_PER_BYTE + TEMPLATE_IDS),
        (Kind::Ids(TokenIds { ids: vec![5, 6, 7] }), 3, 3),
        (Kind::Messages(Messages { messages }), 1, (18 + 48) * IDS_PER_BYTE + 4 * MESSAGE_IDS + TEMPLATE_IDS),
    ] {
        let admitted = admitted(prompt, eight_tokens());
        let says = |prompt_tokens: usize| {
            let opened = v1::Opened { context: 0, ..opened(prompt_tokens as u32) };
            Contract::new(&admitted).opened(&opened, &Transcript::new(0))
        };
        assert_eq!((says(least), says(most)), (Ok(()), Ok(())));
        assert!(says(least - 1).is_err() && says(most + 1).is_err() && says(u32::MAX as usize).is_err());
    }
    let admitted = text(eight_tokens());
    let over = Contract::new(&admitted).opened(&opened(65), &Transcript::new(0));
    assert_eq!(over, Err(Breach::Beyond { what: "the number of prompt tokens", got: 65, most: 64 }), "its context");
}

#[test]
fn a_session_is_opened_once_by_each_owner_and_with_the_prompt_that_it_has() {
    let admitted = text(eight_tokens());
    let (mut contract, transcript) = begun(&admitted, &[1, 2]);
    assert_eq!(contract.opened(&opened(2), &transcript), Err(Breach::Unexpected { what: "a second opening" }));
    contract.next_owner();
    assert_eq!(contract.tokens(&tokens(&[9]), &transcript), Err(Breach::Early { what: "tokens" }));
    assert!(contract.moved(&v1::Moved::default()).is_err());
    assert!(contract.opened(&opened(1), &transcript).is_err() && contract.opened(&opened(3), &transcript).is_err());
    let names = v1::Fingerprints { expert: "x".repeat(LABEL_BYTES + 1), ..v1::Fingerprints::default() };
    assert!(contract.opened(&v1::Opened { fingerprints: Some(names), ..opened(2) }, &transcript).is_err());
    assert_eq!(contract.opened(&opened(2), &transcript), Ok(()));
    assert_eq!(contract.tokens(&tokens(&[9]), &transcript), Ok(()));
}

#[test]
fn ids_are_of_the_vocabulary_and_a_prompt_of_ids_is_the_clients() {
    let admitted = admitted(Kind::Ids(TokenIds { ids: vec![5, 6, 7] }), eight_tokens());
    let (mut contract, mut transcript) = (Contract::new(&admitted), Transcript::new(0));
    assert_eq!(contract.history(&[5], &transcript), Err(Breach::Early { what: "a history" }));
    contract.opened(&opened(3), &transcript).unwrap();
    transcript.announce(3);
    contract.history(&[5], &transcript).unwrap();
    transcript.prompt(&[5]).unwrap();
    assert_eq!(contract.history(&[6, 7], &transcript), Ok(()));
    assert_eq!(contract.history(&[100], &transcript), Err(Breach::Unknown { id: 100, vocabulary: 100 }));
    for other in [&[7][..], &[6, 8], &[6, 7, 8]] {
        assert!(contract.history(other, &transcript).is_err(), "{other:?}");
    }
    transcript.prompt(&[6, 7]).unwrap();
    let mut says = |ids: &[TokenId]| contract.tokens(&tokens(ids), &transcript);
    assert_eq!((says(&[99]), says(&[100])), (Ok(()), Err(Breach::Unknown { id: 100, vocabulary: 100 })));
    // One that does not name its vocabulary has a large one, and no more.
    contract.next_owner();
    contract.opened(&v1::Opened { vocabulary: 0, ..opened(3) }, &transcript).unwrap();
    let mut says = |id| contract.tokens(&tokens(&[id]), &transcript);
    assert!(says(MOST_VOCABULARY - 1).is_ok() && says(MOST_VOCABULARY).is_err() && says(4_000_000_000).is_err());
}

#[test]
fn no_more_is_written_than_was_asked_for() {
    let admitted = text(eight_tokens());
    let (mut contract, mut transcript) = begun(&admitted, &[1, 2]);
    assert_eq!(contract.tokens(&tokens(&[9; 8]), &transcript), Ok(()));
    let over = Breach::Beyond { what: "the number of output tokens", got: 9, most: 8 };
    assert_eq!(contract.tokens(&tokens(&[9; 9]), &transcript), Err(over.clone()));
    transcript.commit(tokens(&[9; 8])).unwrap();
    assert_eq!(contract.tokens(&tokens(&[9]), &transcript), Err(over));
    // Nor more than its model has room for.
    let long = text(Parameters { max_tokens: Some(80), ..Parameters::default() });
    let (mut contract, transcript) = begun(&long, &[1, 2]);
    assert_eq!(contract.tokens(&tokens(&[9; 62]), &transcript), Ok(()));
    assert!(contract.tokens(&tokens(&[9; 63]), &transcript).is_err());
}

#[test]
fn text_has_so_many_bytes_for_each_id_whoever_writes_it() {
    let admitted = text(eight_tokens());
    let (mut contract, mut transcript) = begun(&admitted, &[1, 2]);
    let writes = |ids: &[TokenId], bytes: usize| v1::Tokens { text: "x".repeat(bytes), ..tokens(ids) };
    assert!(contract.tokens(&writes(&[], 1), &transcript).is_err(), "no id, no text");
    assert!(contract.tokens(&writes(&[9], BYTES_PER_ID + 1), &transcript).is_err());
    assert_eq!(contract.tokens(&writes(&[9, 9], BYTES_PER_ID), &transcript), Ok(()));
    transcript.commit(writes(&[9, 9], BYTES_PER_ID)).unwrap();
    assert_eq!(contract.tokens(&writes(&[], BYTES_PER_ID), &transcript), Ok(()), "what was held back");
    assert!(contract.tokens(&writes(&[], 1), &transcript).is_err());
    contract.next_owner();
    contract.opened(&opened(2), &transcript).unwrap();
    assert!(contract.tokens(&writes(&[], 1), &transcript).is_err());
}

#[test]
fn each_id_has_its_words_and_its_scores_and_nothing_has_more() {
    let plain = text(eight_tokens());
    let (mut contract, transcript) = begun(&plain, &[1, 2]);
    let uneven = v1::Tokens { provenance: vec![1], ..tokens(&[9, 9]) };
    assert!(matches!(contract.tokens(&uneven, &transcript), Err(Breach::Uneven { got: 1, expected: 2, .. })));
    assert!(contract.tokens(&scored(&[9], -1.0), &transcript).is_err(), "nobody asked for scores");

    let asked = text(Parameters { logprobs: Some(1), ..eight_tokens() });
    let (mut contract, transcript) = begun(&asked, &[1, 2]);
    for good in [-1.0, 0.0, 1e-6, f32::NEG_INFINITY] {
        assert_eq!(contract.tokens(&scored(&[9, 9], good), &transcript), Ok(()), "{good}");
    }
    for bad in [f32::NAN, f32::INFINITY, 0.5] {
        assert!(contract.tokens(&scored(&[9, 9], bad), &transcript).is_err(), "{bad}");
    }
    assert!(contract.tokens(&tokens(&[9]), &transcript).is_err(), "an id without its score");
    let spoilt: [fn(&mut v1::Tokens); 6] = [
        |t| t.logprobs.truncate(1),
        |t| t.logprobs[1].top[0].token = MOST_VOCABULARY,
        |t| t.logprobs[1].top = vec![v1::Alternative::default(); limits::MAX_TOP_LOGPROBS + 1],
        |t| t.pieces = vec![t.pieces[0].clone(); 5],
        |t| t.pieces[0].token = MOST_VOCABULARY,
        |t| t.pieces[0].bytes = vec![0; BYTES_PER_ID + 1],
    ];
    for (case, spoil) in spoilt.into_iter().enumerate() {
        let mut bad = scored(&[9, 9], -1.0);
        spoil(&mut bad);
        assert!(contract.tokens(&bad, &transcript).is_err(), "case {case}");
    }
}

#[test]
fn an_end_and_its_account_can_be_what_they_say() {
    let admitted = text(Parameters { stop: vec!["END".into()], ..eight_tokens() });
    let (contract, transcript) = begun(&admitted, &[1, 2]);
    let good = || v1::Finished {
        usage: Some(v1::Usage { cached_tokens: 2, ..v1::Usage::default() }),
        stop_string: Some("END".into()),
        stop_token: Some(99),
        speculation: Some(v1::Speculation {
            drafted: 9,
            score: Some(-1.0),
            outcomes: vec![v1::BlockOutcome { drafted: 6, accepted: 6, blocks: 1 }],
            ..v1::Speculation::default()
        }),
        ..v1::Finished::default()
    };
    assert_eq!(contract.finished(&good(), &transcript), Ok(()));
    assert_eq!(contract.finished(&v1::Finished::default(), &transcript), Ok(()));
    let account = |f: &mut v1::Finished| f.speculation.take().unwrap();
    let spoilt: [fn(&mut v1::Finished, v1::Speculation); 8] = [
        |f, _| f.usage = Some(v1::Usage { cached_tokens: 3, ..v1::Usage::default() }),
        |f, _| f.stop_string = Some("FIN".into()),
        |f, _| f.stop_token = Some(100),
        |f, a| f.speculation = Some(v1::Speculation { drafted: u64::MAX, ..a }),
        |f, a| f.speculation = Some(v1::Speculation { score: Some(f64::NAN), ..a }),
        |f, a| f.speculation = Some(v1::Speculation { outcomes: vec![v1::BlockOutcome::default(); 3_000], ..a }),
        |f, a| {
            let outcomes = vec![v1::BlockOutcome { drafted: 65, accepted: 1, blocks: 1 }];
            f.speculation = Some(v1::Speculation { outcomes, ..a });
        },
        |f, a| {
            let outcomes = vec![v1::BlockOutcome { drafted: 6, accepted: 7, blocks: 1 }];
            f.speculation = Some(v1::Speculation { outcomes, ..a });
        },
    ];
    for (case, spoil) in spoilt.into_iter().enumerate() {
        let mut bad = good();
        let speculation = account(&mut bad);
        spoil(&mut bad, speculation);
        assert!(contract.finished(&bad, &transcript).is_err(), "case {case}");
    }
    let early = Contract::new(&admitted).finished(&good(), &transcript);
    assert_eq!(early, Err(Breach::Early { what: "its end" }));
}

#[test]
fn a_query_alone_is_handed_over() {
    let query = text(Parameters { strategy: "cascade_query".into(), ..eight_tokens() });
    let (contract, mut transcript) = begun(&query, &[1, 2]);
    let scored = |score| v1::Handover { score, ..v1::Handover::default() };
    assert_eq!(contract.handover(&scored(-1.5), &transcript), Ok(()));
    assert!(contract.handover(&scored(f64::NAN), &transcript).is_err());
    transcript.commit(tokens(&[9])).unwrap();
    assert!(contract.handover(&scored(-1.5), &transcript).is_err(), "tokens are out");
    let other = text(Parameters { strategy: "speculative".into(), ..eight_tokens() });
    let (contract, transcript) = begun(&other, &[1, 2]);
    assert!(contract.handover(&scored(-1.5), &transcript).is_err());
}

#[test]
fn an_owner_moves_no_more_often_than_time_allows() {
    let admitted = text(eight_tokens());
    let (mut contract, _) = begun(&admitted, &[1, 2]);
    let named =
        |id: String| v1::Moved { expert: Some(v1::NodeRef { id, ..v1::NodeRef::default() }), ..Default::default() };
    assert!(contract.moved(&named("x".repeat(LABEL_BYTES + 1))).is_err());
    for _ in 0..MOST_MOVES {
        assert_eq!(contract.moved(&named("expert-2".into())), Ok(()));
    }
    assert!(contract.moved(&named("expert-2".into())).is_err());
}
