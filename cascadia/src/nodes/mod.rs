//! `cascadia router`, `drafter` and `expert`: one node each, against etcd or a static list.

mod place;
mod traces;

use cascadia_core::placement::Role;
use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::NodeEnv;
use cascadia_node::admin::Loading;
use cascadia_node::config::Reloadable;
use cascadia_node::engine_config::EngineConfig;
use cascadia_node::engine_thread::Executor;
use cascadia_node::lifecycle::Shutdown;
use cascadia_node::loaded_model::LoadedModel;
use cascadia_router::RouterConfig;
use cascadia_router::http::{self, HttpConfig};
use clap::builder::ArgPredicate;
use clap::{Args, FromArgMatches};

pub use place::NodeArgs;
use place::unless_told;
pub use traces::{FLUSH, telemetry};

use crate::config::FileArgs;
use crate::follow::{Followed, Following};
use crate::load::{Model, folder_name};
use crate::synthetic::{self, Synthetic};
use crate::{Failure, Outcome};

/// Arguments of `router`.
#[derive(Args, Clone, Debug)]
pub struct RouterArgs {
    /// How it is configured.
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) config: RouterConfig,
    #[command(flatten)]
    pub(crate) http: HttpConfig,
}

/// Arguments of `drafter` and of `expert`, around the configuration of either.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("model", or_synthetic))]
pub struct EngineArgs<C: Args> {
    /// How it is configured.
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) config: C,
    #[arg(long, value_name = "KEY=VALUE,...", env = "CASCADIA_SYNTHETIC", conflicts_with = "model", help = synthetic::HELP)]
    pub(crate) synthetic: Option<Synthetic>,
}

/// Arguments of `drafter`.
pub type DrafterArgs = EngineArgs<DrafterConfig>;

/// Arguments of `expert`.
pub type ExpertArgs = EngineArgs<ExpertConfig>;

/// A node has a model or is synthetic.
fn or_synthetic(model: clap::Arg) -> clap::Arg {
    let instead = ("synthetic", ArgPredicate::IsPresent, Some(synthetic::SERVED));
    model.required(false).required_unless_present("synthetic").default_value_if(instead.0, instead.1, instead.2)
}

/// A command that runs one node.
pub trait NodeCommand: FromArgMatches + 'static {
    /// What a running node may be told otherwise.
    type Config: Send + Sync + 'static;

    /// The configuration that is meant.
    ///
    /// # Errors
    /// When it cannot be meant: one sentence.
    fn checked(&self) -> Result<Self::Config, String>;
}

impl NodeCommand for RouterArgs {
    type Config = RouterConfig;

    fn checked(&self) -> Result<RouterConfig, String> {
        self.config.check().map(|()| self.config.clone())
    }
}

/// What is a drafter's or an expert's own, among nodes that have an engine.
pub trait EngineNode: Args + Clone + Send + Sync + 'static {
    /// Which of the two.
    const ROLE: Role;

    /// With what is meant where nothing is said.
    #[must_use]
    fn resolved(self, synthetic: Option<&Synthetic>) -> Self;

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// One sentence naming the setting and the cure.
    fn check(&self) -> Result<(), String>;

    /// Its engine's part.
    fn engine(&self) -> &EngineConfig;

    /// The names of its models.
    fn served_model(&self) -> &[String];

    /// Runs the node until it is told to stop.
    fn run(config: Reloadable<Self>, env: NodeEnv, parts: LoadedModel) -> impl Future<Output = Outcome> + Send;
}

impl EngineNode for DrafterConfig {
    const ROLE: Role = Role::Drafter;

    fn resolved(mut self, synthetic: Option<&Synthetic>) -> Self {
        if let Some(synthetic) = synthetic {
            synthetic.configure(Self::ROLE, &mut self.engine);
        }
        self
    }

    fn check(&self) -> Result<(), String> {
        self.check()
    }

    fn engine(&self) -> &EngineConfig {
        &self.engine
    }

    fn served_model(&self) -> &[String] {
        &self.served_model
    }

    async fn run(config: Reloadable<Self>, env: NodeEnv, parts: LoadedModel) -> Outcome {
        Ok(cascadia_drafter_node::run(config, env, parts, Executor::Thread).await?)
    }
}

impl EngineNode for ExpertConfig {
    const ROLE: Role = Role::Expert;

    /// It serves a model by its folder's name unless another is given.
    fn resolved(mut self, synthetic: Option<&Synthetic>) -> Self {
        if let Some(synthetic) = synthetic {
            synthetic.configure(Self::ROLE, &mut self.engine);
        }
        if self.served_model.is_empty() {
            let own = || folder_name(&self.engine.model);
            self.served_model = vec![synthetic.map_or_else(own, |_| synthetic::SERVED.to_owned())];
        }
        self
    }

    fn check(&self) -> Result<(), String> {
        self.check()
    }

    fn engine(&self) -> &EngineConfig {
        &self.engine
    }

    fn served_model(&self) -> &[String] {
        &self.served_model
    }

    async fn run(config: Reloadable<Self>, env: NodeEnv, parts: LoadedModel) -> Outcome {
        Ok(cascadia_expert_node::run(config, env, parts, Executor::Thread).await?)
    }
}

impl<C: EngineNode> EngineArgs<C> {
    /// The configuration that is meant.
    #[must_use]
    pub fn resolved(&self) -> C {
        self.config.clone().resolved(self.synthetic.as_ref())
    }
}

impl<C: EngineNode> NodeCommand for EngineArgs<C> {
    type Config = C;

    fn checked(&self) -> Result<C, String> {
        let config = self.resolved();
        config.check().map(|()| config)
    }
}

/// Runs a router until it is told to stop.
///
/// # Errors
/// When it cannot listen or register.
pub async fn router(args: RouterArgs, followed: Followed) -> Outcome {
    if args.node.source.print_record {
        return args.node.print_record(Role::Router, Vec::new());
    }
    let config = args.checked()?;
    let (following, shutdown) = (followed.listening(), Shutdown::on_signals());
    let starting = async {
        let env = args.node.env(Role::Router, &shutdown).await?;
        Ok::<_, Failure>((env, args.http.open().await?))
    };
    let Some((env, door)) = unless_told(&shutdown, starting).await? else { return Ok(()) };
    serve::<RouterArgs, _>(config, env, following, async |config, env| {
        Ok(cascadia_router::run(config, env, door.map(http::front)).await?)
    })
    .await
}

/// Runs a drafter or an expert until it is told to stop.
///
/// # Errors
/// When it cannot listen, load its model, or register.
pub async fn engine<C: EngineNode>(args: EngineArgs<C>, followed: Followed) -> Outcome {
    // Before the weights, which take minutes.
    let config = args.checked()?;
    let load = loader(C::ROLE, config.engine().clone(), args.synthetic.clone());
    if args.node.source.print_record {
        return args.node.print_record(C::ROLE, load(&Loading::default())?.served(config.served_model()));
    }
    let following = followed.listening();
    let Some((env, parts)) = args.node.start(C::ROLE, load).await? else { return Ok(()) };
    serve::<EngineArgs<C>, _>(config, env, following, async |config, env| C::run(config, env, parts).await).await
}

/// Runs a node that has started; the file that is followed may change its configuration.
async fn serve<A: NodeCommand, R>(config: A::Config, env: NodeEnv, following: Following, run: R) -> Outcome
where
    R: AsyncFnOnce(Reloadable<A::Config>, NodeEnv) -> Outcome,
{
    let (config, replace) = Reloadable::new(config);
    following.spawn(&env.shutdown, move |args: A, _| args.checked().map(|config| replace.with(config)));
    let telemetry = env.telemetry.clone();
    let ended = run(config, env).await;
    telemetry.shutdown(FLUSH).await;
    ended
}

/// Loads what a node runs: the configured model, or a synthetic one.
fn loader(
    role: Role,
    config: EngineConfig,
    synthetic: Option<Synthetic>,
) -> impl FnOnce(&Loading) -> Result<LoadedModel, Failure> + Send + 'static {
    move |loading| match synthetic {
        Some(synthetic) => Ok(synthetic.parts(role, config.kv_pages)),
        None => {
            let mut report = |stage: &str, done, total| loading.at(stage, done, total);
            Model::configured(&config, &mut report)?.parts(&config, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn a_node_has_a_model_or_is_synthetic() {
        let expert = |line: &str| {
            let command = ExpertArgs::augment_args(Command::new("expert").no_binary_name(true));
            ExpertArgs::from_arg_matches(
                &command.try_get_matches_from(["--etcd", "x"].into_iter().chain(line.split(' ')))?,
            )
        };
        assert!(expert("--check").is_err() && expert("--model m --synthetic step=1ms").is_err());
        assert!(expert("--model m").is_ok());
        let args = expert("--synthetic step=1ms").expect("fine");
        assert_eq!((args.synthetic.is_some(), args.resolved().served_model), (true, vec!["synthetic".to_owned()]));
        let error = expert("--synthetic stp=1ms").expect_err("no such key").to_string();
        assert!(error.contains("\"stp\" is no key; keys are of the pair: acceptance"), "{error}");
    }
}
