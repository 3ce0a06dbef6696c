//! Commands of another program, configured in the same way.

use std::ffi::OsString;

use cascadia_node::config::Reloads;
use clap::{Args, Parser, Subcommand};

use super::layers::Origin;
use super::schema::Schema;
use super::{FileArgs, Layout, Part, Refusal, Section, Settings, print, read};

const KITCHEN: Section = Section::new(0, "kitchen", "What ovens and fridges have in common.");
const OVEN: Section = Section::new(1, "oven", "Ovens.");
const FRIDGE: Section = Section::new(2, "fridge", "Fridges.");
const DINNER: Section = Section::new(3, "dinner", "Everything at once.");

static LAYOUT: Layout = Layout {
    preface: "A kitchen.",
    printer: "kitchen defaults",
    common: KITCHEN,
    members: &[OVEN, FRIDGE],
    others: &[DINNER],
    parts: &[Part {
        reader: DINNER,
        section: OVEN,
        arguments: Heat::augment_args,
        defaults: &[("degrees", "80")],
        placeholders: &[("dish", "none")],
    }],
};

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Oven(OvenArgs),
    Fridge(FridgeArgs),
    Dinner(FileArgs),
    Clean,
}

#[derive(Args, Debug)]
struct OvenArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    heat: Heat,
}

#[derive(Args, Debug)]
struct FridgeArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct Place {
    /// Where it stands.
    #[arg(long, env = "KITCHEN_OF_A_TEST_CORNER", default_value = "north")]
    corner: String,
}

#[derive(Args, Debug)]
struct Heat {
    /// How hot it is.
    #[arg(long, env = "KITCHEN_OF_A_TEST_DEGREES", add = Reloads, default_value_t = 180)]
    degrees: u32,
    /// In it.
    #[arg(long, env = "KITCHEN_OF_A_TEST_DISH")]
    dish: String,
}

fn with_file(name: &str, line: &str, text: &str) -> Result<(Line, Settings), Refusal> {
    let path = std::env::temp_dir().join(format!("cascadia-kitchen-{}-{name}.toml", std::process::id()));
    std::fs::write(&path, text).expect("the temporary folder can be written");
    let words = ["kitchen"].into_iter().chain(line.split(' ')).map(OsString::from);
    let resolved = read(words.chain(["--config".into(), path.clone().into()]).collect(), &LAYOUT);
    std::fs::remove_file(path).expect("it is ours");
    resolved.map(|(line, settings)| (line, settings.expect("a file configures the command")))
}

#[test]
fn its_commands_have_a_file_and_the_others_have_none() {
    let text = "[kitchen]\ncorner = \"south\"\n[oven]\ndish = \"pie\"\ndegrees = 200\n";
    let (line, settings) = with_file("layers", "oven --degrees 220", text).expect("a configuration");
    let What::Oven(oven) = line.command else { panic!("another command") };
    assert_eq!((oven.heat.degrees, oven.heat.dish.as_str(), oven.place.corner.as_str()), (220, "pie", "south"));
    assert_eq!(settings.values()[&(OVEN, "degrees".into())].origin, Origin::Flag);
    assert_eq!((settings.value("dish").as_deref(), settings.value("no such key")), (Some("pie"), None));
    let clean: (Line, _) = read(vec!["kitchen".into(), "clean".into()], &LAYOUT).expect("no file is needed");
    assert!(matches!(clean, (Line { command: What::Clean }, None)));
    let help: Result<(Line, _), _> = read(["kitchen", "oven", "--help"].map(Into::into).to_vec(), &LAYOUT);
    assert!(matches!(help, Err(Refusal::Usage(error, None)) if !error.use_stderr()));
}

#[test]
fn a_change_is_the_commands_arguments_or_a_sentence() {
    let (line, settings) = with_file("reload", "oven", "[kitchen]\ncorner = \"south\"\n[oven]\ndish = \"pie\"\n")
        .expect("a configuration");
    let What::Oven(oven) = line.command else { panic!("another command") };
    assert_eq!((oven.file.config.as_deref(), oven.heat.degrees), (settings.path(), 180));
    let reread = settings.reread("[oven]\ndish = \"stew\"\ndegrees = 90\n").expect("a configuration");
    let now: OvenArgs = reread.arguments().expect("an oven");
    assert_eq!((now.heat.degrees, now.heat.dish.as_str(), now.place.corner.as_str()), (90, "pie", "south"));
    let held: Vec<&str> = reread.held.iter().map(|change| change.key.as_str()).collect();
    assert_eq!((reread.changed.len(), held), (1, vec!["oven.corner", "oven.dish"]));
    let refused = settings.reread("[oven]\ndegree = 90\n").expect_err("no such key");
    assert!(refused[0].ends_with("did you mean degrees?"), "{refused:?}");
    let refused = settings.reread("[oven]\ncolour = 90\n").expect_err("no such key");
    assert!(refused[0].ends_with("`kitchen defaults oven` lists what there is"), "{refused:?}");
}

#[test]
fn a_command_reads_sections_of_others_over_defaults_of_its_own() {
    let (line, settings) = with_file("part", "dinner", "[fridge]\ncorner = \"west\"\n").expect("a configuration");
    let What::Dinner(FileArgs { config: Some(path), .. }) = line.command else { panic!("another command") };
    assert_eq!(settings.path(), Some(path.as_path()));
    let heat: Heat = settings.part(OVEN).expect("the defaults are a configuration");
    assert_eq!((heat.degrees, heat.dish.as_str()), (80, "none"));
    assert_eq!(settings.values()[&(OVEN, "degrees".into())].words, ["80"]);
    assert!(settings.values()[&(OVEN, "dish".into())].words.is_empty(), "what stands in for it is not shown");
    let printed = print::defaults(&Schema::of(&LAYOUT, <Line as clap::CommandFactory>::command()), &[KITCHEN, OVEN]);
    for part in ["# A kitchen.\n", "\n# Ovens.\n[oven]\n", "\ndegrees = 180\n", "# How hot it is\n"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    // What is common stands once.
    assert_eq!(printed.matches("corner = ").count(), 1, "{printed}");
}
