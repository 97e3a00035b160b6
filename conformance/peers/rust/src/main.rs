//! The released Rust client against this project's server: `released-peer ADDRESS sync|async`.

use inferential::{AsyncConnection, Connection};

const ROUNDS: u32 = 100;
/// Number on the wire and bytes per element.
const DTYPES: [(i32, usize); 8] = [(1, 2), (2, 4), (3, 8), (4, 2), (5, 1), (6, 4), (7, 8), (8, 1)];

fn content(dtype: i32, size: usize) -> Vec<u8> {
    (0..15 * size).map(|i| if dtype == 8 { (i % 2) as u8 } else { (i * 167 % 256) as u8 }).collect()
}

fn report(dtypes: &[bool], answered: u32, two_models: bool, an_error_is_no_reply: bool, after_an_error: bool) {
    println!(
        "{{\"dtypes\": {dtypes:?}, \"answered\": {answered}, \"two_models\": {two_models}, \
         \"an_error_is_no_reply\": {an_error_is_no_reply}, \"after_an_error\": {after_an_error}}}"
    );
}

fn sync(address: &str) {
    let conn = Connection::new(address, "released-rust", "franka");
    let model = conn.model("inspector", 5000.0, 2);
    let mut dtypes = Vec::new();
    for (dtype, size) in DTYPES {
        let data = content(dtype, size);
        model.observe().tensor("x", &data, dtype, &[3, 5]).send();
        let result = model.get_result(10_000);
        dtypes.push(result.is_some_and(|r| r["x"].data == data && r["x"].dtype == dtype && r["x"].shape == [3, 5]));
    }
    let mut answered = 0;
    for i in 0..ROUNDS {
        let state = [i as f32; 7];
        model
            .observe()
            .urgency(0.5)
            .steps_remaining(ROUNDS - i)
            .tensor_f32("state", &state, &[7])
            .metadata("task", "pick_and_place")
            .send();
        answered += u32::from(model.get_result(10_000).is_some_and(|r| r["state"].as_f32() == state));
    }
    let other = conn.model("policy-v2", 5000.0, 1);
    // One after the other: this client hands out whatever reply comes first, of whichever model.
    let mut two_models = true;
    for (handle, value) in [(&other, 2.0), (&model, 1.0), (&other, 3.0)] {
        handle.observe().tensor_f32("x", &[value], &[1]).send();
        two_models &= handle.get_result(10_000).is_some_and(|r| r["x"].as_f32() == [value]);
    }
    let odd = conn.model("odd", 5000.0, 1);
    odd.observe().metadata("how", "raise").send();
    let an_error_is_no_reply = odd.get_result(500).is_none();
    odd.observe().metadata("how", "bare").send();
    let after = odd.get_result(10_000).is_some_and(|r| r["actions"].as_f32() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    report(&dtypes, answered, two_models, an_error_is_no_reply, after);
}

async fn asynchronous(address: &str) {
    let mut conn = AsyncConnection::new(address, "released-rust-async", "franka").await;
    let mut dtypes = Vec::new();
    let mut answered = 0;
    {
        let mut model = conn.model("inspector", 5000.0, 2);
        for (dtype, size) in DTYPES {
            let data = content(dtype, size);
            model.observe().tensor("x", &data, dtype, &[3, 5]).send().await;
            let result = model.get_result(10_000).await;
            dtypes.push(result.is_some_and(|r| r["x"].data == data && r["x"].dtype == dtype && r["x"].shape == [3, 5]));
        }
        for i in 0..ROUNDS {
            let state = [i as f32; 7];
            model.observe().urgency(0.5).steps_remaining(ROUNDS - i).tensor_f32("state", &state, &[7]).send().await;
            answered += u32::from(model.get_result(10_000).await.is_some_and(|r| r["state"].as_f32() == state));
        }
    }
    let two_models = {
        let mut other = conn.model("policy-v2", 5000.0, 1);
        other.observe().tensor_f32("x", &[2.0], &[1]).send().await;
        other.get_result(10_000).await.is_some_and(|r| r["x"].as_f32() == [2.0])
    };
    let (an_error_is_no_reply, after) = {
        let mut odd = conn.model("odd", 5000.0, 1);
        odd.observe().metadata("how", "raise").send().await;
        let none = odd.get_result(500).await.is_none();
        odd.observe().metadata("how", "bare").send().await;
        let found = odd.get_result(10_000).await;
        (none, found.is_some_and(|r| r["actions"].as_f32() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    };
    conn.close().await;
    report(&dtypes, answered, two_models, an_error_is_no_reply, after);
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments[2].as_str() {
        "sync" => sync(&arguments[1]),
        _ => asynchronous(&arguments[1]).await,
    }
}
