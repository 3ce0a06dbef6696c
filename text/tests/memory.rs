//! Memory that one request may take. One test in a process of its own: the peak is the process's.
#![cfg(target_os = "linux")]

use cascadia_core::commit::{Message, Prompt, Room};
use cascadia_text::{ChatTemplate, ModelFiles, PromptError, SpecialTokens, TemplateError, Tokenizer, toy};

/// What the process has held at most, bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

fn grows_less_than(bound: usize, what: &str, work: impl FnOnce()) {
    let before = peak();
    work();
    let grown = peak() - before;
    assert!(grown < bound, "{what}: {} MB", grown >> 20);
}

const MB: usize = 1 << 20;

#[test]
fn no_request_takes_hundreds_of_megabytes() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/pair/expert");
    let demo = Tokenizer::new(&ModelFiles::read(demo).unwrap()).unwrap();
    let room = Room { context_length: 131_072, max_tokens: 1 };
    // As long as a body may be, and as long as may still fit.
    for (tokenizer, atom, bytes) in [
        (&demo, "7", 3_900_000),
        (&demo, "7", 1_700_000),
        (&demo, "q", 1_700_000),
        // The pattern remembers every place of a run of white space.
        (&demo, " ", 900_000),
        (&toy::sentencepiece(), "q", 3_900_000),
        (&toy::letters(8, 7), "\u{100}\u{101}", 3_900_000),
    ] {
        let prompt = Prompt::Text(atom.repeat(bytes / atom.len()));
        grows_less_than(60 * MB, atom, || {
            let refused = tokenizer.resolve(&prompt, room, None).unwrap_err();
            let too_long = matches!(refused, PromptError::TooManyBytes { .. } | PromptError::TooManyTokens { .. });
            assert!(too_long, "{refused}");
        });
    }

    let messages = [Message::new("user", "hi")];
    let grow = |grown: &str| {
        let source = format!(
            "{{% set it = namespace(x='aaaaaaaa') %}}{{% for i in range(60) %}}{{% set it.x = {grown} %}}{{% endfor %}}"
        );
        ChatTemplate::new(&source, SpecialTokens::default()).unwrap()
    };
    for grown in [
        "it.x ~ it.x",
        "it.x + it.x",
        "it.x * 2",
        "it.x | replace('a', 'aa')",
        "it.x.replace('a', 'aa')",
        "it.x.join([it.x, it.x])",
        "[it.x, it.x] | join",
        "(it.x.split('') | join) ~ it.x",
        "(it.x | split('a') | length) * 'aaaaaaaa'",
        "(it.x | lines | join) ~ it.x ~ '\n'",
        "it.x ~ ([it.x, it.x] | tojson)",
    ] {
        grows_less_than(200 * MB, grown, || {
            let refused = grow(grown).render(&messages, true, None).unwrap_err();
            assert!(matches!(refused, TemplateError::TooMuchWork(_)), "{grown}: {refused}");
        });
    }
}
