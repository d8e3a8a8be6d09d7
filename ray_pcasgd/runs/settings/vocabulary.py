"""Other frameworks' words for settings and for names, and what they mean here."""

WORDS = {
    "step_size": (
        "lr learning_rate base_lr init_lr initial_lr max_lr eta alpha_0 stepsize gamma learningrate lr_scheduler "
        "scheduler lr_schedule lr_scheduler_type schedule_lr"
    ),
    "num_steps": (
        "steps max_steps total_steps train_steps num_iterations iterations iters max_iters max_iter num_iters n_steps "
        "num_updates max_updates training_steps"
    ),
    "num_epochs": "epochs epoch max_epochs num_train_epochs n_epochs train_epochs nb_epochs total_epochs",
    "num_agents": (
        "workers num_workers n_workers agents n_agents nodes num_nodes world_size n_nodes replicas num_replicas "
        "num_processes n_procs processes nproc_per_node clients num_clients peers num_peers ranks size devices"
    ),
    "batch_size": (
        "batch bs batchsize train_batch_size per_device_train_batch_size micro_batch_size minibatch_size "
        "mini_batch_size local_batch_size train_micro_batch_size_per_gpu batch_size_per_worker"
    ),
    "warmup_steps": "warmup num_warmup_steps warmup_iters warm_up warmup_ratio warmup_num_steps",
    "seed": "random_seed manual_seed rng_seed random_state data_seed seed_everything",
    "storage_path": (
        "output_dir out_dir save_dir log_dir logdir results_dir work_dir workdir default_root_dir checkpoint_dir "
        "ckpt_dir output outdir root_dir"
    ),
    "name": "run_name experiment_name exp_name experiment job_name title run_id",
    "evaluate_every": (
        "eval_every eval_steps eval_interval evaluation_interval val_check_interval test_every eval_freq "
        "eval_frequency check_val_every_n_epoch test_interval validation_interval log_every logging_steps "
        "eval_strategy"
    ),
    "engine.name": "backend accelerator strategy executor",
    "engine.address": "ray_address master_addr head_address",
    "engine.gpus_per_agent": "gpus num_gpus gpus_per_worker use_gpu n_gpus num_gpus_per_worker gpu",
    "engine.cpus_per_agent": "cpus num_cpus cpus_per_worker n_cpus num_cpus_per_worker",
    "engine.resources_per_agent": "resources resources_per_worker",
    "engine.message_seconds": "timeout timeout_seconds timeout_s ddp_timeout",
    "engine.mode": "live planned",
    "algorithm": "algo algorithms method rule update_rule aggregator aggregation strategy_name",
    "algorithm.theta": "thetas",
    "algorithm.compensation.lambda_0": "lambda lambda0 lamda lam",
    "algorithm.acceleration": "acid a2cid2 continuous_momentum",
    "algorithm.gathering": "gather synchronization sync_mode",
    "algorithm.period": "communication_period sync_period local_updates tau",
    "topology": "graph network communication_graph topo network_topology",
    "mixing": "mixing_matrix weight_matrix gossip_matrix w_matrix",
    "clusters": "num_clusters groups num_groups sites num_sites data_centers datacenters",
    "links": (
        "delay delays latency latencies lag link staleness link_delay link_delays communication_delay network_delay "
        "delay_steps delay_seconds max_delay message_delay"
    ),
    "compute.law": "compute_time compute_times computation_time step_time speed speeds",
    "compute.stragglers": "straggler slow_agents slow_workers slow slowdown",
    "optimizer.momentum": "momentum nesterov_momentum",
    "optimizer.nesterov": "nesterov",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "epsilon adam_epsilon",
    "gradient_clipping.norm": "gradient_clip_val max_grad_norm clip_norm clip_grad_norm max_norm grad_clip",
    "gradient_clipping.value": "clip_value clip_grad_value gradient_clip_value",
    "precision": (
        "amp use_amp autocast mixed_precision mixed dtype torch_dtype model_dtype param_dtype compute_dtype amp_dtype"
    ),
    "optimizer.weight_decay": "wd l2 l2_penalty weightdecay decay regularization",
    "task.data": (
        "dataset datasets data_set train_dataset trainset train_data training_data data_dir data_path "
        "train_dataloader dataloader train_loader datamodule"
    ),
    "task.model": "net architecture arch module model_name network_architecture model_type backbone",
    "task.loss": "criterion loss_fn loss_function objective",
    "task.metrics": "metric eval_metrics",
    "task.step": "training_step train_step step_fn forward_step compute_loss",
    "task.evaluate": "validation_step test_step eval_step eval_fn compute_metrics evaluate_fn",
    "task.test_batch_size": "eval_batch_size per_device_eval_batch_size validation_batch_size val_batch_size",
    "task.data.collate": "collate_fn data_collator collator collate_function",
    "task.augmentation": "augment augmentations transforms data_augmentation",
    "task.validation_share": "validation_split val_split val_size val_fraction validation_fraction",
    "partition": "split sharding data_split partitioning heterogeneity non_iid noniid shards",
    "partition.alpha": "dirichlet_alpha dirichlet",
    "checkpoint.every_evaluations": (
        "save_every save_steps save_interval checkpoint_every checkpoint_frequency checkpoint_interval save_strategy"
    ),
    "checkpoint.num_to_keep": "save_total_limit save_top_k keep_checkpoints max_checkpoints",
    "checkpoint.score": "metric_for_best_model checkpoint_score_attribute monitor",
    "max_failures": "max_retries retries max_restarts fault_tolerance failures",
    "schedule": "trace replay recorded_schedule",
    "reliability.staleness": "staleness_bound max_staleness",
    "barrier": "synchronous synchronous_mode",
    "faults": "attack byzantine malicious adversary byzantine_workers byzantine_agents",
    "algorithm.attackers": "num_byzantine n_byzantine num_attackers num_malicious nb_byz",
}
"""Other frameworks' words, by the setting that they mean here."""

_DELAYS = "write links: [{delay: 10}], in steps, or links: [{delay: 200ms}]"

_ACCUMULATE = "write accumulate; batch_size stays the number of all samples of a step"

SENTENCES = {
    "device": "write engine.device where engine.name = 'local', or engine.gpus_per_agent where it is 'ray'",
    "cuda": "write engine.device = 'cuda' where engine.name = 'local', or engine.gpus_per_agent where it is 'ray'",
    "resume": "write ray-pcasgd train --resume RUN",
    "resume_from_checkpoint": "write ray-pcasgd train --resume RUN",
    "auto_resume": "write ray-pcasgd train --resume RUN",
    "optim": "write optimizer: adamw, or optimizer: {name: sgd, momentum: 0.9}",
    "optimizer_type": "write optimizer: adamw, or optimizer: {name: sgd, momentum: 0.9}",
    "delay": _DELAYS,
    "delays": _DELAYS,
    "latency": _DELAYS,
    "latencies": _DELAYS,
    "lag": _DELAYS,
    "link_delay": _DELAYS,
    "link_delays": _DELAYS,
    "network_delay": _DELAYS,
    "communication_delay": _DELAYS,
    "message_delay": _DELAYS,
    "gradient_accumulation_steps": _ACCUMULATE,
    "accumulate_grad_batches": _ACCUMULATE,
    "fp16": "write precision = fp16",
    "float16": "write precision = fp16",
    "half": "write precision = fp16",
    "bf16": "write precision = bf16",
    "bfloat16": "write precision = bf16",
    "seeds": "write seed; compare --seeds and the seeds of a sweep take several",
    "config": "write the settings themselves at the top, or their file's path: ray-pcasgd train FILE.yaml",
    "settings": "write the settings themselves at the top, or their file's path: ray-pcasgd train FILE.yaml",
}
"""Sentences for words that mean no single setting here."""

NAMES: dict[str, dict[str, str]] = {
    "algorithm": {
        "pc-asgd": "pcasgd pc_asgd predicting-clipping",
        "d-psgd": "dpsgd sync synchronous ddp allreduce all-reduce gossip decentralized local-sgd",
        "d-asgd": "dasgd async asynchronous decentralized-async",
        "ad-psgd": "adpsgd",
        "server": (
            "ps parameter-server parameter_server asgd downpour hogwild centralized async-sgd ssp "
            "k-async k-sync k-batch-async k-batch-sync n-softsync softsync adasync ringmaster ringmaster-asgd rennala "
            "malenia ringleader ringleader-asgd ia2sgd"
        ),
        "elastic-averaging": "easgd eamsgd elastic elastic-sgd",
        "fedasync": "fed-async asynchronous-federated fedasgd",
        "diloco": "opendiloco fedavg fedbuff fedopt federated-averaging async-local-sgd outer-optimizer",
        "fedglomo": "glomo fedlomo lomo fed-glomo fed-lomo global-local-momentum",
        "svrg": "asysvrg async-svrg variance-reduction variance-reduced",
        "sgp": "push-sum pushsum gradient-push",
    },
    "topology": {
        "complete": "fully-connected full fully_connected all-to-all alltoall clique mesh all dense",
        "ring": "cycle circle circular",
        "torus": "grid 2d-torus mesh-2d lattice",
        "exponential": "static-exponential expander",
        "one-peer-exponential": "one-peer dynamic-exponential onepeer time-varying dynamic",
        "hierarchical": "two-level hierarchy hierarchical-averaging tree-of-groups",
        "erdos-renyi": "random erdos er gnp",
        "edges": "custom line path chain list adjacency tree",
    },
    "mixing": {
        "metropolis": "metropolis-hastings mh",
        "uniform": "average mean equal",
        "matrix": "custom",
    },
    "partition": {
        "dirichlet": "non-iid noniid label-skew",
        "by-label": "pathological labels by_label",
        "iid": "random uniform",
    },
    "barrier": {
        "all": "sync bsp synchronous global",
        "bounded": "ssp stale",
        "none": "async asp no off",
        "sampled": "psp",
    },
    "engine": {
        "local": "cpu process single sequential simulation simulated thread",
        "ray": "cluster distributed actors",
    },
    "engine.mode": {
        "live": "async real online",
        "planned": "replay simulated deterministic",
    },
    "task.loss": {
        "cross-entropy": "ce crossentropy cross_entropy nll xent crossentropyloss categorical_crossentropy",
        "mse": "l2 squared mseloss mean-squared-error regression",
    },
    "task.metrics": {
        "accuracy": "acc",
        "mae": "l1",
        "mse": "l2",
        "top-accuracy": "top5 top-5",
    },
    "task.model": {
        "resnet-20": "resnet20 resnet",
        "mlp": "dense linear fc",
        "small-cnn": "cnn convnet lenet",
        "char-lm": "gpt transformer",
    },
    "task.data": {
        "cifar10": "cifar-10 cifar",
        "cifar100": "cifar-100",
        "digits": "mnist sklearn-digits",
        "fashion-mnist": "fmnist",
    },
    "algorithm.acceleration": {
        "acid": "a2cid2 acid2 continuous-momentum",
    },
    "algorithm.nesterov": {
        "momentum-compensation": "nesterov amc accelerated compensated",
    },
    "algorithm.gathering": {
        "epochs": "snapshots snapshot",
        "adversarial": "adversary worst-case lower-bound",
        "asgd": "async",
        "sync": "all barrier",
        "k-async": "ssp",
        "ia2sgd": "ia2-sgd iasgd iaasgd",
        "malenia": "malenia-sgd maleniasgd",
        "rennala": "rennala-sgd rennalasgd",
        "ringleader": "ringleader-asgd ringleaderasgd",
        "ringmaster": "ringmaster-asgd ringmasterasgd",
    },
    "algorithm.correction": {
        "dc-asgd-a": "dc-asgd dcasgd",
        "dampened": "dampening polynomial hinge exponential",
        "staleness-aware": "sasgd",
    },
    "optimizer": {
        "yellowfin": "yf yf-optimizer yellow-fin closed-loop-yellowfin",
        "torch": "adafactor muon radam nadam rmsprop adagrad adadelta adamax shampoo soap",
    },
    "step_size": {
        "warmup-stable-decay": "wsd trapezoidal",
        "one-cycle": "onecyclelr onecycle",
        "inverse-sqrt": "noam inverse-square-root rsqrt",
        "cosine": "cosineannealing cosine-annealing",
        "multi-step": "multisteplr step steplr",
        "linear": "decay polynomial",
    },
    "precision": {
        "float32": "fp32 f32 32 float full single 32-true highest no none torch.float32",
        "bf16": "bfloat16 bf16-mixed bf16-true mixed mixed-bf16 amp bf torch.bfloat16",
        "fp16": "float16 fp16-mixed 16 16-mixed 16-true half f16 torch.float16",
    },
    "reliability": {
        "measured": "staleness",
        "declared": "clusters",
    },
}
"""Other words for names, by the setting that takes the names."""
