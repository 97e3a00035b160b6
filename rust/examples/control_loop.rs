//! A 50 Hz control loop that never stalls: a fresh action when there is one, else the last one for at most 100 ms, else
//! standing still. Takes the server's address and the number of ticks.

use inferential::{Connection, Error, Fallback, ModelOptions, Rate, Source, Tensor, Tensors};

/// Runs the loop; returns how many of the actions were fresh.
pub fn run(server: &str, ticks: u32) -> Result<u32, Error> {
    let connection = Connection::try_new(server, "arm-01", "franka")?;
    let mut stand_still = Tensors::new();
    stand_still.insert("actions", Tensor::from_slice(&[0.0f32; 7], &[7])?);
    let policy = connection.model_with(
        ModelOptions::new("policy-v2")
            .latency_budget_ms(15.0)
            .priority(0)
            .step_ms(20.0)
            .fallback(Fallback::hold(100.0).template(stand_still)),
    );

    let mut joints = [0.3f32; 7]; // a real arm is measured here
    let mut fresh = 0;
    let mut rate = Rate::new(50.0)?;
    for _ in 0..ticks {
        policy.observe().urgency(0.5).latest_only(true).tensor_f32("state", &joints, &[7]).send();
        let action = policy.act(18); // within 18 ms, whatever happens
        match action.source {
            Source::Fresh => fresh += 1,
            source => eprintln!("{source}, {:.1} ms old: {}", action.age_ms, action.error),
        }
        let velocities = action.tensors.tensor("actions")?.as_f32()?;
        for (joint, velocity) in joints.iter_mut().zip(velocities) {
            *joint += velocity * 0.02; // and moved here
        }
        let missed = rate.sleep();
        if missed > 0 {
            eprintln!("{missed} ticks missed");
        }
    }
    Ok(fresh)
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "tcp://localhost:5555".to_owned());
    let ticks = arguments.next().and_then(|ticks| ticks.parse().ok()).unwrap_or(250);
    println!("{} of {ticks} actions were fresh", run(&server, ticks)?);
    Ok(())
}
