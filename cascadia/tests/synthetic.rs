//! Synthetic nodes in whole clusters: every strategy, the set acceptance, and failover, as with real models.

use cascadia::client::Client;
use cascadia::cluster::{ClusterConfig, LocalCluster, Models};
use cascadia::synthetic::Synthetic;
use cascadia_core::placement::Role;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{GenerateRequest, Parameters, Prompt};

async fn cluster(typed: &str, config: ClusterConfig) -> LocalCluster {
    let synthetic: Synthetic = typed.parse().expect("parameters");
    let mut config = config;
    synthetic.configure(Role::Drafter, &mut config.drafter.engine);
    synthetic.configure(Role::Expert, &mut config.expert.engine);
    let models = Models::synthetic(&synthetic, &config.drafter, &config.expert);
    LocalCluster::start(config, models).await.expect("it starts")
}

fn request(prompt: &str, parameters: Parameters) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::Text(prompt.into())) }),
        parameters: Some(parameters),
        ..GenerateRequest::default()
    }
}

fn parameters(strategy: &str, temperature: f64) -> Parameters {
    Parameters {
        strategy: strategy.into(),
        temperature: Some(temperature),
        seed: Some(5),
        max_tokens: Some(600),
        ..Parameters::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_tokens_are_as_many_as_was_set_and_the_text_is_the_experts() {
    let cluster = cluster("acceptance=0.7,step=0s,length=none", ClusterConfig::default()).await;
    let client = cluster.client().await.expect("the router is there");
    for temperature in [0.0, 1.0] {
        let (mut accepted, mut tokens) = (0, 0);
        for prompt in ["one", "two", "three", "four"] {
            let alone = client.answer(request(prompt, parameters("expert", temperature))).await.expect("an answer");
            let answer =
                client.answer(request(prompt, parameters("speculative", temperature))).await.expect("an answer");
            assert_eq!(answer.text, alone.text);
            assert_eq!(answer.token_ids.len(), 600);
            assert!(answer.started.fingerprints.as_ref().expect("said").expert.starts_with("synthetic-"));
            accepted += answer.from_drafter();
            tokens += answer.token_ids.len();
        }
        let share = accepted as f64 / tokens as f64;
        // Four standard deviations of so many tokens.
        assert!((share - 0.7).abs() < 0.04, "temperature {temperature}: {share}");
    }
    let mut told = Vec::new();
    for (strategy, rule, alpha) in [
        ("drafter", "", None),
        ("cascade_query", "", Some(-0.2)),
        ("cascade_token", "", Some(0.5)),
        ("speculative_cascade", "token_v3", Some(0.3)),
        ("speculative_cascade", "chow", Some(0.5)),
    ] {
        let parameters = Parameters { rule: rule.into(), alpha, ..parameters(strategy, 0.7) };
        let answer = client.answer(request("any", parameters)).await.expect(strategy);
        assert_eq!(answer.token_ids.len(), 600, "{strategy}");
        told.push(answer.text);
    }
    assert_eq!(told[2], told[4], "the sequential cascade is Chow's");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_have_the_set_length_unless_their_end_is_ignored() {
    let cluster = cluster("length=40,step=0s", ClusterConfig::default()).await;
    let client = cluster.client().await.expect("the router is there");
    const TEXTS: usize = 60;
    let mut tokens = 0;
    for text in 0..TEXTS {
        let answer =
            client.answer(request(&format!("text {text}"), parameters("speculative", 0.0))).await.expect("an answer");
        tokens += answer.token_ids.len();
    }
    // A geometric law has the standard deviation of its mean.
    let mean = tokens as f64 / TEXTS as f64;
    assert!((mean - 40.0).abs() < 4.0 * 40.0 / (TEXTS as f64).sqrt(), "{mean} tokens a text");
    let endless = Parameters { ignore_eos: true, ..parameters("speculative", 0.0) };
    assert_eq!(client.answer(request("text", endless)).await.expect("an answer").token_ids.len(), 600);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_survives_its_nodes() {
    let config = ClusterConfig { isolated: true, ..ClusterConfig::default() };
    let mut cluster = cluster("acceptance=0.6,length=none,expert.step=4ms,drafter.step=1ms", config).await;
    let client = cluster.client().await.expect("the router is there");
    let ask = |client: Client| async move { client.answer(request("a text", parameters("speculative", 0.8))).await };
    let before = ask(client.clone()).await.expect("an answer");
    let again = tokio::spawn(ask(client.clone()));
    // Whatever each of them is doing then: the session's own nodes are among those that go.
    for node in [&before.started.drafter, &before.started.expert] {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        cluster.kill(&cascadia_core::ids::NodeId(node.clone()));
    }
    assert_eq!(again.await.expect("no panic").expect("an answer").text, before.text);
    cluster.stop().await;
}
