//! A prompt becomes ids away from the runtime's threads, in turn, and only for as long as somebody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use cascadia_core::commit::{Prompt, PromptRefusal, Room, Text};
use cascadia_core::ids::TokenId;
use cascadia_proto::refusal;
use tokio::sync::Semaphore;
use tonic::Status;

/// A text of so many bytes is tokenized where it stands: that takes less than a millisecond or two. No conversation is:
/// its template came with the model and may do anything.
const SHORT_TEXT: usize = 4 * 1024;

/// Turns of the prompts of a size: how many of them are worked on at once.
struct Turns {
    /// Bytes of the longest.
    most: usize,
    turns: Semaphore,
}

impl Turns {
    /// A prompt waits for others of its size alone, never for much longer ones.
    const fn by_size() -> [Self; 3] {
        [Self::of(16 * 1024, 2), Self::of(256 * 1024, 1), Self::of(usize::MAX, 1)]
    }

    const fn of(most: usize, at_once: usize) -> Self {
        Self { most, turns: Semaphore::const_new(at_once) }
    }
}

static TEXTS: [Turns; 3] = Turns::by_size();

/// Apart from texts: a template that is slow for every message holds up its own kind only.
static CONVERSATIONS: [Turns; 3] = Turns::by_size();

/// Tells the work when whoever waits for it has gone.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A prompt's ids. Dropped, it ends the work on them soon.
///
/// # Errors
/// `INVALID_ARGUMENT` naming what is wrong with the prompt.
pub(crate) async fn ids(text: &Arc<dyn Text>, prompt: Prompt, room: Room) -> Result<Vec<TokenId>, Status> {
    let (bytes, sizes) = match &prompt {
        Prompt::Ids(_) => (0, None),
        Prompt::Text(text) => (text.len(), Some(&TEXTS).filter(|_| text.len() > SHORT_TEXT)),
        Prompt::Messages(messages) => {
            let bytes = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
            (bytes, Some(&CONVERSATIONS))
        }
    };
    let Some(turns) = sizes.and_then(|sizes| sizes.iter().find(|size| bytes <= size.most)) else {
        return text.resolve(&prompt, room, &|| true).map_err(refuse);
    };
    let turn = turns.turns.acquire().await.map_err(|closed| Status::internal(closed.to_string()))?;
    let gone = Arc::new(AtomicBool::new(false));
    let _waiting = Waiting(gone.clone());
    let text = text.clone();
    let ids = tokio::task::spawn_blocking(move || {
        // The turn goes with the work, which goes on for a moment when nobody waits for it any more.
        let _turn = turn;
        text.resolve(&prompt, room, &|| !gone.load(Relaxed))
    });
    ids.await.map_err(|error| Status::internal(format!("the prompt was not tokenized: {error}")))?.map_err(refuse)
}

fn refuse(refused: PromptRefusal) -> Status {
    match refused {
        PromptRefusal::TooLong(sentence) => refusal::too_long(sentence),
        PromptRefusal::Wrong(sentence) => refusal::of_field("prompt", sentence),
        PromptRefusal::Abandoned => Status::cancelled("nobody waits for the prompt any more"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use cascadia_core::commit::{Commit, Message, StopSettings};
    use cascadia_text::{Tokenizer, toy};

    use super::*;

    const ROOM: Room = Room { context_length: 8, max_tokens: 1 };

    /// A text side that works on a prompt for as long as somebody wants it, unless the prompt ends in a full stop.
    #[derive(Default)]
    struct Endless {
        begun: AtomicUsize,
        working: AtomicUsize,
        most: AtomicUsize,
        thread: std::sync::Mutex<Option<std::thread::ThreadId>>,
    }

    impl Text for Endless {
        fn fingerprint(&self) -> &str {
            ""
        }

        fn vocabulary(&self) -> usize {
            1
        }

        fn eos_ids(&self) -> &[TokenId] {
            &[]
        }

        fn resolve(&self, prompt: &Prompt, _: Room, wanted: &dyn Fn() -> bool) -> Result<Vec<TokenId>, PromptRefusal> {
            *self.thread.lock().unwrap() = Some(std::thread::current().id());
            if matches!(prompt, Prompt::Text(text) if !text.ends_with('.')) {
                self.begun.fetch_add(1, Relaxed);
                self.most.fetch_max(self.working.fetch_add(1, Relaxed) + 1, Relaxed);
                while wanted() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                self.working.fetch_sub(1, Relaxed);
                return Err(PromptRefusal::Abandoned);
            }
            Ok(vec![0])
        }

        fn begin(self: Arc<Self>, _: &[TokenId], _: StopSettings) -> Box<dyn Commit> {
            unimplemented!("no test commits")
        }
    }

    async fn until(what: impl Fn() -> bool) {
        tokio::time::timeout(Duration::from_secs(120), async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it happens");
    }

    fn both() -> (Arc<Endless>, Arc<dyn Text>) {
        let endless = Arc::new(Endless::default());
        (endless.clone(), endless)
    }

    /// The turns are the process's, so one test asks for them in its order.
    #[tokio::test]
    async fn prompts_take_turns_by_their_size_and_end_with_their_clients() {
        let (endless, text) = both();
        let long = |_| {
            let text = text.clone();
            tokio::spawn(async move { ids(&text, Prompt::Text("x".repeat(1 << 20)), ROOM).await })
        };
        let mut clients: Vec<_> = (0..10).map(long).collect();
        until(|| endless.begun.load(Relaxed) > 0).await;

        // Ten that never end are at work or wait; these do not wait for them.
        for bytes in [5_000, 100_000] {
            let prompt = Prompt::Text("x".repeat(bytes) + ".");
            assert_eq!(ids(&text, prompt, ROOM).await.unwrap(), [0]);
        }
        let talk = Prompt::Messages(vec![Message::new("user", "x".repeat(1 << 20))]);
        assert_eq!(ids(&text, talk, ROOM).await.unwrap(), [0]);

        // Each goes; then the next has its turn, and no two work at a time though each works on after its client left.
        for n in 1..=10 {
            until(|| endless.begun.load(Relaxed) == n).await;
            clients.remove(0).abort();
        }
        until(|| endless.working.load(Relaxed) == 0).await;
        assert_eq!(endless.most.load(Relaxed), 1);
        let last = Prompt::Text("x".repeat(1 << 20) + ".");
        assert_eq!(ids(&text, last, ROOM).await.unwrap(), [0], "the turn is free again");
    }

    #[tokio::test]
    async fn templates_never_run_on_the_runtimes_threads() {
        let (endless, text) = both();
        let here = std::thread::current().id();
        ids(&text, Prompt::Messages(vec![Message::new("user", "hi")]), ROOM).await.unwrap();
        assert_ne!(*endless.thread.lock().unwrap(), Some(here));
        ids(&text, Prompt::Text("hi.".into()), ROOM).await.unwrap();
        assert_eq!(*endless.thread.lock().unwrap(), Some(here));
    }

    #[tokio::test]
    async fn a_template_without_an_end_fails_its_request_alone() {
        let mut files = toy::byte_level_files();
        let loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
        files.chat_template = Some(loops.into());
        let text: Arc<dyn Text> = Arc::new(Tokenizer::new(&files).unwrap());
        let talk = || {
            let text = text.clone();
            tokio::spawn(async move { ids(&text, Prompt::Messages(vec![Message::new("user", "hi")]), ROOM).await })
        };
        let talks = [talk(), talk(), talk()];
        // As long as a text that needs a turn, and short enough for this context: special tokens are long.
        let room = Room { context_length: 1_000, max_tokens: 1 };
        let beside = ids(&text, Prompt::Text("<|assistant|>".repeat(500)), room).await.unwrap();
        assert_eq!(beside, [3; 500]);
        for talk in talks {
            let status = talk.await.unwrap().unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains("the chat template takes more work"), "{status}");
        }
    }
}
