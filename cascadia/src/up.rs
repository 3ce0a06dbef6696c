//! `cascadia up`: a whole cluster in this process.

use std::path::PathBuf;
use std::time::Duration;

use cascadia_core::ids::NodeId;
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::lifecycle::Shutdown;
use cascadia_router::RouterConfig;

use crate::cli::UpArgs;
use crate::cluster::{ClusterConfig, LocalCluster, Models, Reconfigure};
use crate::cluster_file::{DRAFTER, EXPERT, ROUTER};
use crate::config::Settings;
use crate::follow::Followed;
use crate::load::{self, Model, Pair};
use crate::nodes::EngineNode as _;
use crate::signals::Signals;
use crate::terminal::Usage;
use crate::{Failure, Outcome, nodes};

/// Runs the command until Ctrl-C or SIGTERM.
///
/// # Errors
/// When a model cannot be loaded, the address cannot be listened on, or a node ends.
pub async fn run(args: &UpArgs, followed: Followed) -> Outcome {
    let telemetry = nodes::telemetry(&args.telemetry)?;
    let config = ClusterConfig { telemetry: telemetry.clone(), ..configured(args, followed.settings())? };
    let ended = serve(args, followed, config).await;
    telemetry.shutdown(nodes::FLUSH).await;
    ended
}

async fn serve(args: &UpArgs, followed: Followed, config: ClusterConfig) -> Outcome {
    let following = followed.listening();
    let (served, models) = models(args, &config)?;
    let model = config.expert.served_model.join(", ");
    // Before anybody can ask: whoever does is waited for.
    let mut signal = Signals::new()?;
    let mut cluster = LocalCluster::start(config, models).await?;
    let stop = Shutdown::new();
    if let Some(reconfigure) = cluster.reconfigure() {
        following.spawn(&stop, move |args, settings| apply(&args, settings, &reconfigure));
    }
    greet(&greeting(&cluster, &served, &model))?;

    let node = tokio::select! {
        () = signal.next() => None,
        (id, reason) = cluster.failed() => Some((id, reason)),
    };
    if let Some((id, reason)) = node {
        cluster.stop().await;
        return Err(ended(&id, &reason));
    }
    let ended = async {
        let finish = cluster.finish();
        tokio::pin!(finish);
        if tokio::time::timeout(QUIET, &mut finish).await.is_err() {
            crate::tell("open sessions finish; press Ctrl-C again to cut them");
            finish.await;
        }
    };
    tokio::select! {
        () = ended => {}
        () = signal.next() => {}
    }
    cluster.stop().await;
    Ok(())
}

/// What somebody at a terminal wants to know.
fn greeting(cluster: &LocalCluster, served: &str, model: &str) -> String {
    let (address, nodes) = (cluster.address(), cluster.nodes());
    let names = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        format!("Cascadia serves {served} on {address} ({names})."),
        format!("Try: cascadia generate --server {address} {EXAMPLE:?}"),
    ];
    lines.extend(cluster.http().map(|http| format!("OpenAI clients: base URL http://{http}/v1, model {model}")));
    lines.push("Ctrl-C stops it.".into());
    lines.join("\n")
}

/// Whoever has read enough of a greeting may close the pipe: the cluster serves others too.
fn greet(greeting: &str) -> std::io::Result<()> {
    match crate::print_line(greeting) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// An end that takes longer is explained.
const QUIET: Duration = Duration::from_millis(500);

/// The name of the shipped pair.
const SHIPPED: &str = "demo";

const EXAMPLE: &str = "Tom has 7 apples. He buys 3 boxes with 4 apples each. How many apples does Tom have now?";

fn ended(id: &NodeId, reason: &str) -> Failure {
    format!("{id} ended ({reason}), so the cluster stops; see the log").into()
}

fn served(pair: &Pair) -> String {
    let name = |model: &Model| model.folder.display().to_string();
    format!("{} drafted by {}", name(&pair.expert), name(&pair.drafter))
}

/// What is served, and what makes its nodes.
fn models(args: &UpArgs, config: &ClusterConfig) -> Result<(String, Models), Failure> {
    if let Some(synthetic) = &args.synthetic {
        return Ok(("no model but its pace".to_owned(), Models::synthetic(synthetic, &config.drafter, &config.expert)));
    }
    let (drafter, expert) = (&config.drafter, &config.expert);
    let pair = Pair::new(
        Model::configured(&drafter.engine, &mut |_, _, _| {})?,
        Model::configured(&expert.engine, &mut |_, _, _| {})?,
    )?;
    Ok((served(&pair), Models::of_pair(&pair, drafter, expert, config.drafters + config.experts)))
}

/// The cluster that is meant: its nodes are configured by the file's sections.
///
/// # Errors
/// When a section means nothing, or one model of the pair is missing.
pub fn configured(args: &UpArgs, settings: &Settings) -> Result<ClusterConfig, Failure> {
    let router: RouterConfig = settings.part(ROUTER)?;
    let mut drafter: DrafterConfig = settings.part(DRAFTER)?;
    let mut expert: ExpertConfig = settings.part(EXPERT)?;
    match &args.synthetic {
        Some(synthetic) => {
            (drafter, expert) = (drafter.resolved(Some(synthetic)), expert.resolved(Some(synthetic)));
        }
        None => {
            let (drafter_model, expert_model, name) = pair(args, settings)?;
            (drafter.engine.model, expert.engine.model) = (drafter_model, expert_model);
            for served in [&mut drafter.served_model, &mut expert.served_model] {
                if served.is_empty() {
                    *served = vec![name.clone()];
                }
            }
        }
    }
    router.check()?;
    drafter.check()?;
    expert.check()?;
    let (drafters, experts) = (args.drafters as usize, args.experts as usize);
    Ok(ClusterConfig {
        listen: args.listen.clone(),
        admin: args.admin.clone(),
        http: args.http.clone(),
        drafters,
        experts,
        router,
        drafter,
        expert,
        ..Default::default()
    })
}

/// The folders of the pair that is asked for, and the name it is served under: the expert's folder's.
fn pair(args: &UpArgs, settings: &Settings) -> Result<(PathBuf, PathBuf, String), Failure> {
    let own = |section| settings.of_file(section, "model").map(PathBuf::from);
    let drafter = args.drafter_model.clone().or_else(|| own(DRAFTER));
    let expert = args.expert_model.clone().or_else(|| own(EXPERT));
    match (drafter, expert) {
        (Some(drafter), Some(expert)) => {
            let name = load::folder_name(&expert);
            Ok((drafter, expert, name))
        }
        (None, None) => {
            let folder = load::shipped_pair()?;
            Ok((folder.join("drafter"), folder.join("expert"), SHIPPED.to_owned()))
        }
        (Some(_), None) => Err(half("a drafter's", "expert")),
        (None, Some(_)) => Err(half("an expert's", "drafter")),
    }
}

/// What to do where a pair is named by half.
fn half(given: &str, missing: &str) -> Failure {
    let sentence = format!(
        "{given} model is given and no {missing}'s; a pair needs both: add --{missing}-model with a model of the same \
         tokenizer, or leave both out for the shipped pair"
    );
    Usage(sentence).into()
}

/// Takes up a changed file, if all of it can be.
fn apply(args: &UpArgs, settings: &Settings, reconfigure: &Reconfigure) -> Result<(), String> {
    let config = configured(args, settings).map_err(|error| error.to_string())?;
    reconfigure.with(config);
    Ok(())
}
