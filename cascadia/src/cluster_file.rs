//! The file that configures a cluster, and `cascadia config`, which writes one.

#[cfg(test)]
mod tests;

use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_router::RouterConfig;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::Outcome;
use crate::config::schema::Schema;
use crate::config::{Layout, Part, Section, print};

/// What routers, drafters and experts have in common.
pub const NODE: Section = Section::new(0, "node", "What routers, drafters and experts have in common.");

/// Routers.
pub const ROUTER: Section =
    Section::new(1, "router", "Routers; what stands in [node] may stand here too, and is stronger.");

/// Drafters.
pub const DRAFTER: Section =
    Section::new(2, "drafter", "Drafters; what stands in [node] may stand here too, and is stronger.");

/// Experts.
pub const EXPERT: Section =
    Section::new(3, "expert", "Experts; what stands in [node] may stand here too, and is stronger.");

/// A cluster in one process.
pub const UP: Section =
    Section::new(4, "up", "A cluster in one process: `cascadia up` reads [router], [drafter] and [expert] as well.");

/// The pair of a cluster in one process is found by other means where the file names no models.
const NO_MODEL: &[(&str, &str)] = &[("model", "none")];

/// The file.
pub static LAYOUT: Layout = Layout {
    preface: "Settings of a Cascadia cluster, with their defaults; one file will do for all its nodes. Each is a flag and a \
              variable of its command too: a flag is stronger than its variable, a variable than this file. Unknown keys are \
              errors. A change of \"reloads\" settings is taken up by running nodes.",
    printer: "cascadia config --print-defaults",
    common: NODE,
    members: &[ROUTER, DRAFTER, EXPERT],
    others: &[UP],
    parts: &[
        Part {
            reader: UP,
            section: ROUTER,
            arguments: RouterConfig::augment_args,
            // No load balancer has to learn that this router goes.
            defaults: &[("lame_duck_ms", "0")],
            placeholders: &[],
        },
        Part {
            reader: UP,
            section: DRAFTER,
            arguments: DrafterConfig::augment_args,
            defaults: &[],
            placeholders: NO_MODEL,
        },
        Part {
            reader: UP,
            section: EXPERT,
            arguments: ExpertConfig::augment_args,
            defaults: &[],
            placeholders: NO_MODEL,
        },
    ],
};

/// Arguments of `config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Print a file for --config with all defaults, and what each setting means.
    #[arg(long, required = true)]
    pub print_defaults: bool,

    /// Only these sections.
    #[arg(value_parser = section_parser())]
    pub sections: Vec<Section>,
}

fn section_parser() -> impl TypedValueParser<Value = Section> {
    let names: Vec<&str> = LAYOUT.sections().map(Section::name).collect();
    PossibleValuesParser::new(names).try_map(|name| LAYOUT.section(&name).ok_or("no such section"))
}

/// Runs `cascadia config`, for a command line that has the commands of all sections.
///
/// # Errors
/// When standard output is closed.
pub fn run(args: &ConfigArgs, command: clap::Command) -> Outcome {
    let sections = if args.sections.is_empty() { LAYOUT.sections().collect() } else { args.sections.clone() };
    Ok(crate::print(&print::defaults(&Schema::of(&LAYOUT, command), &sections))?)
}
