//! A session that nobody reads does not hold its place for ever.

use std::sync::Arc;

use cascadia_core::commit::{StopSettings, Text};
use cascadia_core::limits::CLIENT_WRITE_TIMEOUT;
use cascadia_node::owner::{Output, Start};
use cascadia_proto::parameters::{self, Defaults};
use cascadia_proto::v1::run_response::Message;
use cascadia_proto::v1::{History, Parameters, Resolved};
use tokio::sync::mpsc;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn a_router_that_reads_nothing_ends_its_session_and_one_that_reads_slowly_does_not() {
    let text: Arc<dyn Text> = Arc::new(cascadia_text::toy::byte_level());
    let resolved = Resolved {
        parameters: Some(parameters::resolve(&Parameters::default(), &Defaults::default()).unwrap()),
        ..Resolved::default()
    };
    let decoding = parameters::decoding(&resolved, 1, &[]).unwrap();
    let (sender, mut receiver) = mpsc::channel(1);
    let commit = text.begin(&[5], StopSettings { max_tokens: 9, ..StopSettings::default() });
    let output = Output::new(sender, commit, Start { ids: &[5], prompt_tokens: 1, decoding: &decoding });
    let message = || Message::History(History { ids: vec![5] });
    output.send(message()).await.unwrap();
    let reader = async {
        tokio::time::sleep(CLIENT_WRITE_TIMEOUT * 9 / 10).await;
        receiver.recv().await.unwrap().unwrap();
    };
    let (sent, ()) = tokio::join!(output.send(message()), reader);
    sent.unwrap();
    let since = Instant::now();
    let unread = output.send(message()).await.unwrap_err();
    assert_eq!((unread.code(), since.elapsed()), (tonic::Code::Cancelled, CLIENT_WRITE_TIMEOUT));
    assert!(unread.message().contains("left the session unread for 60 s"), "{unread}");
    drop(receiver);
    assert!(output.send(message()).await.unwrap_err().message().contains("closed"));
}
