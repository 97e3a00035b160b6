import asyncio
from inferential import Server
from inferential.config.schema import InferentialConfig, ModelConfig, ModelsConfig

config = InferentialConfig(
    models=ModelsConfig(
        known={
            "manipulation-policy": ModelConfig(max_inflight=4),  # match GPU replica count
            "telemetry": ModelConfig(max_inflight=1),
        },
    ),
)
config.transport.bind = "tcp://*:5555"
config.scheduling.strategy = "model_deadline"
config.scheduling.pipeline_dispatch.enabled = True

server = Server(config=config, models=["manipulation-policy", "telemetry"])

@server.on_metric
def log(name, value, labels):
    if name == "e2e_latency_ms":
        print(f"[{labels.get('model')}/{labels.get('client')}] {value:.1f}ms")

asyncio.run(server.run())
