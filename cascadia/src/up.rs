//! `cascadia up`: a whole cluster in this process.

use cascadia_core::ids::NodeId;

use crate::cli::UpArgs;
use crate::cluster::{ClusterConfig, LocalCluster, Models};
use crate::load::{self, Model, Pair};
use crate::{Failure, Outcome};

/// Runs the command until Ctrl-C or SIGTERM.
///
/// # Errors
/// When a model cannot be loaded, the address cannot be listened on, or a node ends.
pub async fn run(args: &UpArgs) -> Outcome {
    let mut config = ClusterConfig {
        listen: args.listen.clone(),
        drafters: args.drafters as usize,
        experts: args.experts as usize,
        ..ClusterConfig::default()
    };
    // No load balancer has to learn that this router goes.
    config.router.lame_duck_ms = 0;
    let (served, models) = models(args, &mut config)?;
    let mut cluster = LocalCluster::start(config, models).await?;
    let names = cluster.nodes().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    crate::print_line(&format!("Cascadia serves {served} on {} ({names}).", cluster.address()))?;
    crate::print_line(&format!("Try: cascadia generate --server {} {:?}", cluster.address(), EXAMPLE))?;
    crate::print_line("Ctrl-C stops it.")?;

    let mut signal = Signals::new()?;
    let node = tokio::select! {
        () = signal.next() => None,
        (id, reason) = cluster.failed() => Some((id, reason)),
    };
    if let Some((id, reason)) = node {
        cluster.stop().await;
        return Err(ended(&id, &reason));
    }
    if busy(&cluster).await {
        eprintln!("open sessions finish; press Ctrl-C again to cut them");
        tokio::select! {
            () = cluster.finish() => {}
            () = signal.next() => {}
        }
    }
    cluster.stop().await;
    Ok(())
}

const EXAMPLE: &str = "Tom has 7 apples. He buys 3 boxes with 4 apples each. How many apples does Tom have now?";

fn ended(id: &NodeId, reason: &str) -> Failure {
    format!("{id} ended ({reason}), so the cluster stops; see the log").into()
}

fn served(pair: &Pair) -> String {
    let name = |model: &Model| model.folder.display().to_string();
    format!("{} drafted by {}", name(&pair.expert), name(&pair.drafter))
}

/// What is served, and what makes its nodes.
fn models(args: &UpArgs, config: &mut ClusterConfig) -> Result<(String, Models), Failure> {
    let Some(synthetic) = &args.synthetic else {
        let pair = pair(args, config)?;
        return Ok((served(&pair), pair.models(&config.drafter, &config.expert)));
    };
    config.drafter.served_model = Vec::new();
    config.expert.served_model = Vec::new();
    synthetic.configure_drafter(&mut config.drafter);
    synthetic.configure_expert(&mut config.expert);
    Ok(("no model but its pace".to_owned(), synthetic.models(&config.drafter, &config.expert)))
}

/// The pair that is asked for; its expert's folder names the served model.
fn pair(args: &UpArgs, config: &mut ClusterConfig) -> Result<Pair, Failure> {
    let (drafter, expert) = match (&args.drafter_model, &args.expert_model) {
        (Some(drafter), Some(expert)) => {
            let name = load::folder_name(expert);
            config.drafter.served_model = vec![name.clone()];
            config.expert.served_model = vec![name];
            (drafter.clone(), expert.clone())
        }
        _ => {
            let folder = load::shipped_pair()?;
            (folder.join("drafter"), folder.join("expert"))
        }
    };
    config.drafter.model.clone_from(&drafter);
    config.expert.model.clone_from(&expert);
    Pair::new(Model::load(&drafter, &config.drafter.dtype)?, Model::load(&expert, &config.expert.dtype)?)
}

/// Whether any session is open.
async fn busy(cluster: &LocalCluster) -> bool {
    let Ok(client) = cluster.client().await else { return false };
    let Ok(status) = client.status().await else { return false };
    status.members.iter().any(|member| member.load.is_some_and(|load| load.sessions > 0))
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
