from metaflow import Config, FlowSpec, card, config_expr, current, gang, gang_log, retry, slurm, step, torchrun
from metaflow.huggingface_card_callback import MetaflowHuggingFaceCardCallback


class Right(FlowSpec):
    config = Config("config", default_value="{}")

    @gang
    @slurm(gpu=8, time=90, sbatch=["--exclusive"])
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry
    @card
    @torchrun(nproc_per_node=config_expr("config.gpus"), lost_host_timeout=20)
    @step
    def train(self):
        parts = current.gang.gather(1)
        gang_log(step=1, loss=0.5)
        print(current.torch.torchrun_args["master_port"], current.gang.nodes[0].address, current.jax.process_id)
        current.card.append(MetaflowHuggingFaceCardCallback)
        print(current.parallel.node_index, parts)
        self.next(self.end)

    @torchrun(nproc_per_node=config.gpus)
    @step
    def end(self, inputs):
        pass
