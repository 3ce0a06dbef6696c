//! Flags, variables, file and defaults, each against the other.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use cascadia_router::RouterConfig;
use clap::CommandFactory as _;
use proptest::prelude::*;

use super::{DRAFTER, EXPERT, LAYOUT, NODE, ROUTER, UP};
use crate::check;
use crate::cli::{Cli, Command, UpArgs};
use crate::config::file::{File, Problem};
use crate::config::layers::{Origin, flags};
use crate::config::schema::{Schema, Setting};
use crate::config::settings::Change;
use crate::config::{Refusal, Section, Settings, print};
use crate::nodes::RouterArgs;

const ALL: [Section; 5] = [NODE, ROUTER, DRAFTER, EXPERT, UP];

fn read(argv: Vec<OsString>) -> Result<(Cli, Option<Settings>), Refusal> {
    crate::config::read(argv, &LAYOUT)
}

fn schema() -> Schema {
    Schema::of(&LAYOUT, Cli::command())
}

fn problems(text: &str) -> Vec<Problem> {
    File::parse(text, &schema()).expect_err(text)
}

/// A file that ends with the test.
struct OnDisk(PathBuf);

impl OnDisk {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cascadia-config-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("the temporary folder can be written");
        Self(path)
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn argv(line: &str, file: &OnDisk) -> Vec<OsString> {
    let words = ["cascadia"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    words.chain(["--config".into(), file.0.clone().into()]).collect()
}

fn resolved(name: &str, line: &str, text: &str) -> Result<(Cli, Settings), Refusal> {
    let file = OnDisk::new(name, text);
    read(argv(line, &file)).map(|(cli, settings)| (cli, settings.expect("a file configures the command")))
}

fn router(cli: Cli) -> RouterConfig {
    match cli.command {
        Command::Router(args) => args.config,
        _ => panic!("another command"),
    }
}

fn origin(settings: &Settings, section: Section, key: &str) -> Origin {
    settings.values()[&(section, key.to_owned())].origin.clone()
}

#[test]
fn a_flag_is_stronger_than_the_file_and_the_file_than_the_default() {
    let text = "[node]\netcd = [\"http://a:1\", \"http://b:2\"]\nlease_ttl = 20\n\n[router]\nmax-sessions = 7\nlease_ttl = 30\n\
                most_tokens = 99\nstrategies = [\"expert\", \"speculative\"]\ndefault_alpha = 0.25\n";
    let (cli, settings) = resolved("layers", "router --max-sessions 5", text).expect("a configuration");
    let config = router(cli);
    assert_eq!((config.max_sessions, config.most_tokens, config.default_max_tokens), (5, 99, 256));
    assert_eq!(
        (config.strategies.as_slice(), config.default_alpha),
        (&["expert".into(), "speculative".into()][..], Some(0.25))
    );
    assert_eq!(origin(&settings, ROUTER, "max_sessions"), Origin::Flag);
    assert_eq!(origin(&settings, ROUTER, "most_tokens"), Origin::File(8));
    assert_eq!(origin(&settings, ROUTER, "default_max_tokens"), Origin::Default);
    // The node's own section is stronger than the common one.
    assert_eq!(origin(&settings, ROUTER, "lease_ttl"), Origin::File(7));
    assert_eq!(settings.values()[&(ROUTER, "lease_ttl".into())].words, ["30"]);
    assert_eq!(settings.values()[&(ROUTER, "etcd".into())].words, ["http://a:1", "http://b:2"]);
}

#[test]
fn a_stronger_choice_ends_a_weaker_one_that_it_excludes() {
    let text = "[node]\netcd = [\"http://a:1\"]\n[router]\nstatic = \"list.json\"\n";
    let (_, settings) = resolved("own", "router", text).expect("the node's own section decides");
    assert_eq!(origin(&settings, ROUTER, "etcd"), Origin::Default);
    assert_eq!(origin(&settings, ROUTER, "static"), Origin::File(4));
    let (_, settings) = resolved("typed", "router --etcd http://b:2", text).expect("the flag decides");
    assert_eq!(origin(&settings, ROUTER, "static"), Origin::Default);
    assert_eq!(settings.values()[&(ROUTER, "etcd".into())].words, ["http://b:2"]);
    // Both at once cannot be meant, and neither can none.
    let both = resolved("both", "router", "[router]\netcd = \"a:1\"\nstatic = \"list.json\"\n");
    assert!(matches!(both, Err(Refusal::Usage(..))));
    assert!(matches!(resolved("none", "router", "[router]\n"), Err(Refusal::Usage(..))));
}

#[test]
fn what_is_required_may_stand_in_the_file() {
    let text = "[node]\netcd = \"a:1\"\n[drafter]\nmodel = \"some/where\"\n";
    let (cli, _) = resolved("required", "drafter", text).expect("model and membership are given");
    let Command::Drafter(args) = cli.command else { panic!("another command") };
    assert_eq!(args.config.engine.model, PathBuf::from("some/where"));
    assert!(matches!(resolved("missing", "expert", text), Err(Refusal::Usage(..))));
}

#[test]
fn switches_are_true_or_false() {
    let text = |on: bool| format!("[node]\netcd = \"a:1\"\nlog_json = {on}\n");
    assert!(resolved("on", "router", &text(true)).expect("fine").0.log_json);
    assert!(!resolved("off", "router", &text(false)).expect("fine").0.log_json);
    assert!(resolved("typed-on", "router --log-json", &text(false)).expect("fine").0.log_json);
}

#[test]
fn help_needs_no_file() {
    let file = OnDisk::new("help", "nonsense");
    assert!(matches!(read(argv("router --help", &file)), Err(Refusal::Usage(error, None)) if !error.use_stderr()));
    assert!(matches!(read(argv("router", &file)), Err(Refusal::File(_))));
    // Other commands have no file.
    assert!(matches!(read(argv("status", &file)), Err(Refusal::Usage(..))));
}

#[test]
fn what_is_unknown_is_named_with_what_was_meant() {
    for (text, line, says) in [
        ("[router]\nmax_sesions = 5\n", 2, "did you mean max_sessions?"),
        ("[router]\n\nkv_pages = 5\n", 3, "it belongs in [drafter] or [expert]"),
        ("[node]\nmax_sessions = 5\n", 2, "it belongs in [router] or [drafter] or [expert]"),
        ("[exprt]\nkv_pages = 5\n", 1, "did you mean [expert]?"),
        ("lease_ttl = 5\n", 1, "lease_ttl stands in no section: put it in [node]"),
        ("router = 5\n", 1, "router is a section"),
        ("[router]\nzzzzzzzz = 5\n", 2, "cascadia config --print-defaults router"),
        ("[router]\nconfig = \"x\"\n", 2, "has no key \"config\""),
        ("[router]\nmax_sessions = 5\nmax-sessions = 5\n", 3, "set in line 2 too"),
    ] {
        let found = problems(text);
        assert_eq!((found.len(), found[0].line), (1, Some(line)), "{text}: {found:?}");
        assert!(found[0].sentence.contains(says), "{text}: {}", found[0].sentence);
    }
}

#[test]
fn a_wrong_value_says_what_was_found_and_what_would_be_right() {
    for (text, says) in [
        ("[router]\nmax_sessions = \"many\"\n", ["router.max_sessions is \"many\", a TOML string", "a whole number"]),
        ("[router]\nmax_sessions = \"5\"\n", ["a TOML string", "a whole number"]),
        ("[router]\nmax_sessions = 5.5\n", ["is 5.5, a TOML float", "a whole number"]),
        ("[router]\nmax_sessions = -5\n", ["-5", "invalid"]),
        ("[router]\nmax_sessions = 999999999999999999999\n", ["router.max_sessions", "99999"]),
        ("[router]\ndefault_temperature = \"hot\"\n", ["\"hot\"", "a number"]),
        ("[router]\ndefault_strategy = 5\n", ["is 5, a TOML integer", "a string"]),
        ("[router]\nmax_sessions = [5]\n", ["array", "a whole number"]),
        ("[router]\nmax_sessions = { a = 5 }\n", ["table", "a whole number"]),
        ("[router]\nstrategies = []\n", ["empty list", "leave it out"]),
        ("[router]\nstrategies = [\"a,b\"]\n", ["a,b", "','"]),
        ("[node]\nlease_ttl = 1\n", ["node.lease_ttl is \"1\"", "2..=3600"]),
        ("[node]\nlog_json = \"yes\"\n", ["\"yes\", a TOML string", "true or false"]),
        ("[node]\nlease_ttl = 1979-05-27\n", ["datetime", "a whole number"]),
        ("[router\n", ["this is no TOML", ""]),
        ("[router]\nmax_sessions = 5\nmax_sessions = 6\n", ["duplicate key", "max_sessions"]),
    ] {
        let found = problems(text);
        assert!(found[0].line.is_some() && found.len() == 1, "{text}: {found:?}");
        assert!(says.iter().all(|says| found[0].sentence.contains(says)), "{text}: {}", found[0].sentence);
    }
    // Everything at once.
    let found = problems("[router]\nmax_sessions = \"many\"\n[expert]\nslot = 5\n");
    assert_eq!(found.iter().map(|problem| problem.line).collect::<Vec<_>>(), [Some(2), Some(4)]);
}

#[test]
fn numbers_may_be_written_as_toml_allows() {
    let text =
        "[node]\netcd = \"a:1\"\n[router]\nmax_sessions = 0x10\nmost_tokens = 1_000\ndefault_temperature = 1e-1\n";
    let config = router(resolved("numbers", "router", text).expect("fine").0);
    assert_eq!((config.max_sessions, config.most_tokens, config.default_temperature), (16, 1000, 0.1));
}

/// Whatever a field's struct says of it, there is a flag, a variable, a help text; and what is a secret is marked so.
#[test]
fn every_setting_is_whole() {
    for section in ALL {
        let settings = schema().section(section).to_vec();
        assert!(settings.len() > 5, "{section:?}");
        for setting in settings {
            let (key, help) = (setting.key(), setting.help());
            assert!(setting.variable().starts_with("CASCADIA_"), "{key}");
            assert!(help.len() > 10, "{key} has no help: {help:?}");
            let secret = ["_token", "_key", "_secret", "_password"].iter().any(|end| key.ends_with(end));
            assert_eq!(secret, setting.is_secret(), "{key}: hide_env_values belongs to secrets, and to each of them");
        }
    }
    // What nodes have in common, and what each has.
    let has = |section, key| schema().setting(section, key).is_some();
    assert!(has(NODE, "etcd") && has(NODE, "log") && !has(NODE, "max_sessions"));
    assert!(has(UP, "drafters") && has(EXPERT, "slots") && !has(ROUTER, "check"));
}

#[test]
fn printed_defaults_are_read_as_the_defaults() {
    let schema = schema();
    let printed = print::defaults(&schema, &ALL);
    let file = File::parse(&printed, &schema).unwrap_or_else(|problems| panic!("{problems:?}\n{printed}"));
    for section in ALL {
        for setting in schema.section(section) {
            let given = |section| file.0.get(&(section, setting.key().to_owned())).map(|entry| entry.given.to_string());
            let expected = Some(setting.default().join(",")).filter(|default| !default.is_empty());
            assert_eq!(given(section).or_else(|| given(NODE)), expected, "{section:?} {}", setting.key());
        }
    }
    // The examples of what has no default are of the right kind, too.
    let examples = printed.lines().map(|line| match line.strip_prefix("# ") {
        Some(example) if example.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => example,
        _ => line,
    });
    let examples = examples.collect::<Vec<_>>().join("\n");
    let wrong = File::parse(&examples, &schema).err().unwrap_or_default();
    assert!(wrong.iter().all(|problem| !problem.sentence.contains("it must be")), "{wrong:?}");
    // And so is the whole.
    let source = "\n[router]\netcd = \"a:1\"\n";
    let (cli, _) = resolved("defaults", "router", &printed.replace("\n[router]\n", source)).expect("a configuration");
    assert_eq!(format!("{:?}", router(cli)), format!("{:?}", RouterConfig::default()));
}

#[test]
fn what_is_in_force_is_printed_as_a_file_with_its_origins() {
    let text = "[node]\netcd = \"a:1\"\n[router]\nmost_tokens = 99\n";
    let (_, settings) = resolved("effective", "router --max-sessions 5", text).expect("fine");
    let printed = print::effective(&settings);
    for line in ["max_sessions = 5  # --max-sessions", "default_rule = \"token_v3\"  # default", "# static is not set"]
    {
        assert!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
    }
    assert!(printed.contains("most_tokens = 99  # ") && printed.contains("-effective.toml:4\n"), "{printed}");
    let again = File::parse(&printed, &schema()).expect("a file");
    assert_eq!(again.0[&(ROUTER, "max_sessions".into())].given.to_string(), "5");
}

#[test]
fn a_running_node_takes_what_it_can_and_says_what_it_cannot() {
    let before = "[node]\netcd = \"a:1\"\nlease_ttl = 20\n[router]\nmax_sessions = 7\ndefault_strategy = \"expert\"\n";
    let (_, settings) = resolved("reload", "router --most-tokens 50", before).expect("fine");
    let after = "[node]\netcd = \"b:1\"\n[router]\nmax_sessions = 8\nmost_tokens = 60\n";
    let reread = settings.reread(after).expect("a configuration");
    let config = reread.arguments::<RouterArgs>().expect("it is a router").config;
    assert_eq!((config.max_sessions, config.most_tokens, config.default_strategy.as_str()), (8, 50, "speculative"));
    let key = |change: &Change| format!("{} {} -> {}", change.key, change.old, change.new);
    assert_eq!(
        reread.changed.iter().map(key).collect::<Vec<_>>(),
        ["router.default_strategy expert -> speculative", "router.max_sessions 7 -> 8"]
    );
    assert_eq!(
        reread.held.iter().map(key).collect::<Vec<_>>(),
        ["router.etcd a:1 -> b:1", "router.lease_ttl 20 -> 15"]
    );
    // What needs a restart is still told of at the next change, what was taken is not.
    let again = reread.settings.reread(after).expect("a configuration");
    assert_eq!((again.changed.len(), again.held.len()), (0, 2));
    // A file that cannot be used says why, and nothing is half applied.
    for (text, says) in [
        ("[router]\nmax_sessions = 9\nmost_token = 5\n", "did you mean most_tokens?"),
        ("[router]\nmax_sessions = 9\n", "--etcd"),
        ("[router\n", "no TOML"),
    ] {
        let problems = settings.reread(text).expect_err(text);
        assert!(problems[0].contains(says) && problems[0].contains("reload.toml"), "{problems:?}");
    }
}

#[test]
fn a_cluster_in_one_process_reads_the_sections_of_its_nodes() {
    let text = "[up]\ndrafters = 1\n[router]\nmax_sessions = 9\n[expert]\nslots = 3\n[drafter]\npipeline_depth = 1\n";
    let (cli, settings) = resolved("up", "up", text).expect("fine");
    let Command::Up(args) = &cli.command else { panic!("another command") };
    let config = crate::up::configured(args, &settings).expect("a cluster");
    assert_eq!((config.drafters, config.router.max_sessions), (1, 9));
    assert_eq!((config.expert.slots, config.drafter.pipeline_depth), (3, 1));
    assert_eq!(config.expert.served_model, ["demo"]);
    assert_eq!(check::problems(&cli, &settings), [""; 0]);
    let reread = settings.reread("[router]\nmax_sessions = 10\n[expert]\nslots = 4\n").expect("fine");
    let held: Vec<&str> = reread.held.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(held, ["expert.slots", "up.drafters"]);
    let config =
        crate::up::configured(&reread.arguments::<UpArgs>().expect("it is up"), &reread.settings).expect("a cluster");
    assert_eq!((config.router.max_sessions, config.expert.slots, config.drafter.pipeline_depth), (10, 3, 0));
}

/// TOML that is nearly right: known sections and keys, any value.
fn nearly() -> impl Strategy<Value = String> {
    let keys: Vec<String> = ALL
        .into_iter()
        .flat_map(|section| schema().section(section).iter().map(Setting::key).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|on| on.to_string()),
        "[ -~]{0,12}".prop_map(|text| toml::Value::from(text).to_string()),
        "[ -~]{0,12}".prop_map(|text| format!("[{}]", toml::Value::from(text))),
        "[ -~]{0,12}",
    ];
    let line = (prop::sample::select(keys), value).prop_map(|(key, value)| format!("{key} = {value}\n"));
    let section = (prop::sample::select(&ALL[..]), prop::collection::vec(line, 0..4));
    prop::collection::vec(section, 0..4).prop_map(|sections| {
        sections.into_iter().fold(String::new(), |mut text, (section, lines)| {
            let _ = write!(text, "[{}]\n{}", section.name(), lines.concat());
            text
        })
    })
}

proptest! {
    /// A text is entries that fit, or problems that name their lines; never a panic.
    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![any::<String>(), nearly()]) {
        let schema = schema();
        match File::parse(&text, &schema) {
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                let lines = text.lines().count().max(1) + 1;
                prop_assert!(problems.iter().all(|problem| problem.line.is_none_or(|line| line <= lines)));
            }
            Ok(file) => {
                for ((section, key), entry) in &file.0 {
                    let setting = schema.setting(*section, key).expect("what is unknown is refused");
                    for flag in flags(setting, &entry.given) {
                        let (_, value) = flag.to_str().and_then(|flag| flag.split_once('=')).unwrap_or_default();
                        prop_assert!(value.is_empty() || setting.try_value(value).is_ok());
                    }
                }
            }
        }
    }
}
