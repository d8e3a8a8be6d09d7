from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.objective import evaluate
from ray_pcasgd.tasks.partition import Partition, label_histogram
from ray_pcasgd.tasks.samples import MapSamples, Samples
from ray_pcasgd.tasks.task import Task, TaskData

__all__ = ["Batches", "MapSamples", "Partition", "Samples", "Task", "TaskData", "evaluate", "label_histogram"]
