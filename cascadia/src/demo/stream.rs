//! Three answers, each token coloured by which model wrote it.

use cascadia_proto::v1::generate_response::Event;
use cascadia_text::{Detokenizer, Tokenizer};

use super::compare::{CASCADE, request};
use crate::bench::problem::Problem;
use crate::client::{Answer, Client};
use crate::colours::Marks;
use crate::{Failure, Outcome};

/// Streams the answers to `problems`, one after the other.
///
/// # Errors
/// When an answer fails or standard output is closed.
pub async fn show(client: &Client, tokenizer: &Tokenizer, problems: &[Problem], marks: Marks) -> Outcome {
    crate::print_line(&format!("{}\n", marks.legend()))?;
    for problem in problems {
        crate::print_line(&marks.bold(&problem.question))?;
        let answer = one(client, tokenizer, problem, marks).await?;
        let verdict = if problem.is_solved_by(&answer.text) { "right" } else { "wrong" };
        let passes = answer.speculation().expert_passes;
        crate::print_line(&format!(
            "  ({verdict}; {} tokens in {passes} passes of the expert)\n",
            answer.token_ids.len()
        ))?;
    }
    Ok(())
}

async fn one(client: &Client, tokenizer: &Tokenizer, problem: &Problem, marks: Marks) -> Result<Answer, Failure> {
    let mut events = client.generate(request(&CASCADE, problem, "stream".into())).await?;
    let mut words = Words::new(tokenizer, marks);
    let mut answer = Answer::default();
    crate::print("  ")?;
    while let Some(event) = events.next().await? {
        if let Event::Tokens(tokens) = &event {
            for (&id, provenance) in tokens.ids.iter().zip(tokens.provenance()) {
                crate::print(&words.push(id, provenance))?;
            }
        }
        answer.take(event);
    }
    crate::print_line(&words.finish())?;
    Ok(answer)
}

/// Marks runs of tokens of one provenance as a whole, so that brackets do not cut words to pieces.
struct Words<'a> {
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer,
    marks: Marks,
    run: String,
    provenance: cascadia_proto::v1::Provenance,
}

impl<'a> Words<'a> {
    fn new(tokenizer: &'a Tokenizer, marks: Marks) -> Self {
        let provenance = cascadia_proto::v1::Provenance::Unspecified;
        Self { tokenizer, detokenizer: Detokenizer::new(tokenizer, &[]), marks, run: String::new(), provenance }
    }

    /// What can be printed once the next token is known.
    fn push(&mut self, id: u32, provenance: cascadia_proto::v1::Provenance) -> String {
        let mut done = String::new();
        if provenance != self.provenance {
            done = self.finish();
            self.provenance = provenance;
        }
        self.detokenizer.push(self.tokenizer, id, &mut self.run);
        if self.marks == Marks::Colours {
            // Colours need no end: what is there can be seen at once.
            done.push_str(&self.finish());
        }
        done
    }

    /// The rest.
    fn finish(&mut self) -> String {
        self.marks.mark(&std::mem::take(&mut self.run), self.provenance)
    }
}
