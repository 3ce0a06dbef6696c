//! `cascadia generate`: one answer, streamed.

mod args;
mod json;

use std::io::{IsTerminal, Read};

use cascadia_proto::v1;
use cascadia_proto::v1::generate_response::Event;

pub use args::{GenerateArgs, OnDrafterLoss, OnExpertLoss};
pub use json::to_json;

use crate::client::{Answer, Client, ClientError};
use crate::colours::Marks;
use crate::{Failure, Outcome};

/// Runs the command.
///
/// # Errors
/// When the router cannot be reached, or refuses the request or breaks it off.
pub async fn run(args: &GenerateArgs) -> Outcome {
    let prompt = if args.prompt == "-" { read_prompt(args.raw)? } else { args.prompt.clone() };
    let client = Client::connect(&args.server).await?;
    let request = args.request(prompt);
    if args.json {
        let answer = client.answer(request).await.map_err(with_cure)?;
        crate::print_line(&to_json(&answer).to_string())?;
        return Ok(());
    }
    stream(&client, request).await
}

/// What failed, with the flag that helps, where one does.
fn with_cure(error: ClientError) -> Failure {
    if error.wants_plain_text() { format!("{error}; --raw does so").into() } else { error.into() }
}

fn read_prompt(raw: bool) -> Result<String, Failure> {
    let mut prompt = String::new();
    std::io::stdin().read_to_string(&mut prompt).map_err(|error| format!("standard input is not text: {error}"))?;
    // The line end that `echo` adds is no part of a message; raw text is sent as it is.
    if !raw && prompt.ends_with('\n') {
        prompt.truncate(prompt.trim_end_matches(['\n', '\r']).len());
    }
    Ok(prompt)
}

async fn stream(client: &Client, request: v1::GenerateRequest) -> Outcome {
    let marks = Marks::of_stdout(Marks::None);
    let mut events = client.generate(request).await.map_err(with_cure)?;
    let mut answer = Answer::default();
    let mut first = None;
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(failure) => {
                // It begins a line of its own.
                if first.is_some() {
                    crate::print_line("")?;
                }
                return Err(with_cure(failure));
            }
        };
        if let Event::Tokens(tokens) = &event {
            first.get_or_insert_with(|| events.elapsed());
            crate::print(&coloured(marks, tokens))?;
        }
        answer.take(event);
    }
    answer.elapsed = events.elapsed();
    crate::print_line("")?;
    if std::io::stderr().is_terminal() {
        let first = first.unwrap_or(answer.elapsed);
        crate::tell(&summary(&answer, first));
        if marks == Marks::Colours {
            crate::tell(&marks.legend());
        }
    }
    Ok(())
}

/// The text of one message, coloured.
///
/// Owners send the tokens of one provenance in one message; where they do not, the message goes uncoloured rather than
/// in a colour that is wrong for a part of it.
fn coloured(marks: Marks, tokens: &v1::Tokens) -> String {
    let mut all = tokens.provenance();
    match all.next() {
        Some(first) if all.all(|next| next == first) => marks.mark(&tokens.text, first),
        _ => tokens.text.clone(),
    }
}

/// What the answer cost, in one line.
fn summary(answer: &Answer, first: std::time::Duration) -> String {
    let (usage, speculation) = (answer.usage(), answer.speculation());
    let tokens = answer.token_ids.len().max(1);
    let mut line = format!(
        "{} tokens in {:.2} s (first after {:.2} s), {} expert passes, {:.0} % from the drafter, {}, seed {}",
        usage.completion_tokens,
        answer.elapsed.as_secs_f64(),
        first.as_secs_f64(),
        speculation.expert_passes,
        100.0 * answer.from_drafter() as f64 / tokens as f64,
        answer.started.parameters.as_ref().map_or("", |p| p.strategy.as_str()),
        answer.started.seed,
    );
    if answer.finished.reason() == v1::FinishReason::Length {
        line.push_str(", cut at the length");
    }
    if !answer.finished.reproducible {
        line.push_str(", not reproducible");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_mixed_provenance_is_not_miscoloured() {
        let mut tokens = v1::Tokens { text: "ab".into(), provenance: vec![1, 1], ..Default::default() };
        assert_eq!(coloured(Marks::Colours, &tokens), Marks::Colours.mark("ab", v1::Provenance::Accepted));
        tokens.provenance = vec![1, 3];
        assert_eq!(coloured(Marks::Colours, &tokens), "ab");
    }
}
