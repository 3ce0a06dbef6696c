//! Clients that never retry, and compare each answer with the one of an idle cluster.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cascadia::client::{Answer, Client};
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{GenerateRequest, Parameters, Prompt};
use tokio::task::JoinHandle;

/// A request and its answer.
#[derive(Clone, Debug)]
pub struct Case {
    pub request: GenerateRequest,
    pub text: String,
    pub token_ids: Vec<u32>,
}

/// Requests of three strategies, short ones and long ones.
pub fn requests(model: &str, long: u32) -> Vec<GenerateRequest> {
    let questions = ["Mia has 7 apples. She buys 5 more. How many apples does Mia have now?", "Ben has 36 stones."];
    let strategies = [
        Parameters { strategy: "speculative".into(), ..Parameters::default() },
        Parameters {
            strategy: "speculative_cascade".into(),
            rule: "token_v3".into(),
            alpha: Some(0.6),
            ..Parameters::default()
        },
        Parameters { strategy: "expert".into(), ..Parameters::default() },
    ];
    let mut requests = Vec::new();
    for (i, (parameters, ignore_eos)) in
        strategies.into_iter().flat_map(|s| [(s.clone(), false), (s, true)]).enumerate()
    {
        let parameters = Parameters {
            temperature: Some(0.8),
            seed: Some(i as u64),
            max_tokens: Some(if ignore_eos { long } else { 40 }),
            ignore_eos,
            ..parameters
        };
        requests.push(GenerateRequest {
            model: model.into(),
            prompt: Some(Prompt { kind: Some(Kind::Text(questions[i % questions.len()].into())) }),
            parameters: Some(parameters),
            ..GenerateRequest::default()
        });
    }
    requests
}

/// What went wrong, from whichever client.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<Mutex<Vec<String>>>);

impl Failures {
    pub fn add(&self, what: String) {
        eprintln!("FAILURE: {what}");
        self.0.lock().expect("no holder panics").push(what);
    }

    pub fn assert_none(&self, when: &str) {
        let failures = self.0.lock().expect("no holder panics");
        assert!(failures.is_empty(), "{when}: {failures:#?}");
    }
}

impl Case {
    /// Asks an idle cluster.
    pub async fn calm(client: &Client, request: GenerateRequest) -> Self {
        let answer = client.answer(request.clone()).await.expect("an idle cluster answers");
        assert!(answer.finished.reproducible);
        Self { request, text: answer.text, token_ids: answer.token_ids }
    }

    /// Compares an answer; every position's order the client has checked already.
    fn check(&self, answer: &Answer) -> Result<(), String> {
        let strategy = &answer.started.parameters.as_ref().ok_or("no parameters")?.strategy;
        if !answer.finished.reproducible || answer.token_ids != self.token_ids || answer.text != self.text {
            let same = answer.token_ids.iter().zip(&self.token_ids).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "{strategy}: reproducible {}, the same up to token {same} of {}, {} came, moves {:?}",
                answer.finished.reproducible,
                self.token_ids.len(),
                answer.token_ids.len(),
                answer.finished.speculation.as_ref().map(|s| s.moves),
            ));
        }
        Ok(())
    }
}

/// gRPC clients of long-lived channels that ask without a pause until told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub async fn start(clients: usize, server: &str, cases: &[Case], failures: &Failures) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut handles = Vec::new();
        for number in 0..clients {
            let client = Client::connect(server).await.expect("the balancer listens");
            let (cases, failures) = (cases.to_vec(), failures.clone());
            let (stop, answered) = (stop.clone(), answered.clone());
            handles.push(tokio::spawn(async move {
                let mut turn = number;
                while !stop.load(Ordering::Relaxed) {
                    let case = &cases[turn % cases.len()];
                    let outcome = match client.answer(case.request.clone()).await {
                        Ok(answer) => case.check(&answer),
                        Err(error) => Err(error.to_string()),
                    };
                    match outcome {
                        Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            failures.add(format!("gRPC client {number}: {error}"));
                            return;
                        }
                    };
                    turn += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }));
        }
        Self { stop, answered, clients: handles }
    }

    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client's task ends");
        }
    }
}

/// A stream that has begun, on a connection of its own, and is read to its end.
pub async fn begun(server: &str, case: &Case, failures: &Failures) -> JoinHandle<()> {
    let client = Client::connect(server).await.expect("the balancer listens");
    let mut events = client.generate(case.request.clone()).await.expect("a stream begins");
    let mut answer = Answer::default();
    answer.take(events.next().await.expect("a stream begins").expect("with an event"));
    let (case, failures) = (case.clone(), failures.clone());
    tokio::spawn(async move {
        loop {
            match events.next().await {
                Ok(Some(event)) => answer.take(event),
                Ok(None) => break,
                Err(error) => return failures.add(format!("a stream begun before the signal: {error}")),
            }
        }
        if let Err(error) = case.check(&answer) {
            failures.add(format!("a stream begun before the signal: {error}"));
        }
    })
}
