"""The structural schema of the status that the operator writes."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

PHASES = ("Pending", "Suspended", "Running", "Succeeded", "Failed", "Refused", "Ending")


def text(description: str, **more: Any) -> Schema:
    """Return the schema of a string."""
    return {"type": "string", "description": description, **more}


def time(description: str) -> Schema:
    """Return the schema of a time."""
    return text(description, format="date-time")


def whole(description: str) -> Schema:
    """Return the schema of an integer."""
    return {"type": "integer", "format": "int64", "description": description}


def number(description: str) -> Schema:
    """Return the schema of a number."""
    return {"type": "number", "description": description}


def thing(description: str, required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object with these properties."""
    made = {"type": "object", "description": description, "properties": properties}
    return made | ({"required": list(required)} if required else {})


def listed(description: str, key: str, items: Schema) -> Schema:
    """Return the schema of a list whose items differ in one key."""
    return {
        "type": "array",
        "description": description,
        "items": items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    }


OBSERVED = whole("Generation of the object that this status describes.")


def conditions(types: str) -> Schema:
    """Return the schema of a list of metav1.Condition, with its bounds."""
    condition = thing(
        "One aspect of the object's state.",
        ("type", "status", "lastTransitionTime", "reason", "message"),
        type=text(f"{types}.", maxLength=316, pattern=r"^[A-Z][A-Za-z0-9]*$"),
        status=text("True, False or Unknown.", enum=["True", "False", "Unknown"]),
        reason=text(
            "Reason, in one word.",
            minLength=1,
            maxLength=1024,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        ),
        message=text("Reason, as a sentence.", maxLength=32768),
        lastTransitionTime=time("Time when the status last changed."),
        observedGeneration=whole("Generation of the object that this condition describes."),
    )
    return listed("Conditions of the object, one per type.", "type", condition)


STAGE = thing(
    "A stage of the run.",
    ("name",),
    name=text("Name of the stage, with the column that it makes: caption:blip2."),
    state=text("State of the stage: waiting, running, done, failed or stopped."),
    done=whole("Number of units that are done."),
    total=whole("Number of units in all."),
    unit=text("Unit of done and total: shards or tasks."),
    samples=whole("Number of samples processed."),
    samplesPerSecond=number("Samples per second of all the stage's pods together."),
    seconds=number("Seconds that the stage took so far."),
    gpuSeconds=whole("Seconds of GPUs that its finished work took in this run."),
    checkpoints=whole("Number of checkpoints that the trainings have reached."),
    checkpointsTotal=whole("Number of checkpoints of all trainings."),
    retries=whole("Number of its pods' attempts that failed."),
    failures={
        "type": "object",
        "description": "Number of samples that could not be used, by reason; the most frequent reasons.",
        "additionalProperties": {"type": "integer", "format": "int64"},
    },
)

RECAPTION = thing(
    "State of the run, as the operator observed it.",
    phase=text("State of the run in one word.", enum=list(PHASES)),
    observedGeneration=OBSERVED,
    conditions=conditions("Accepted, Running, Suspended, Complete, Failed or Reachable"),
    stage=text("Current stage."),
    progress=text("Progress of the current stage, such as 120/800 shards."),
    rate=text("Samples per second of the current stage, such as 75.2/s."),
    stages=listed("Stages that have begun.", "name", STAGE),
    costs=thing(
        "What the run has spent, beside what was predicted when it began. Only work that is recorded counts.",
        spentGpuHours=number("Hours of GPUs spent."),
        spentCoreHours=number("Hours of cores spent by the stages without GPUs."),
        spentMoney=number("Their cost by the prices of spec.compute.pools, in the currency of these."),
        predictedGpuHours=number("Hours of GPUs predicted."),
        predictedCoreHours=number("Hours of cores predicted."),
        predictedMoney=number("Their cost by the prices of spec.compute.pools."),
    ),
    run=text("URI of the run: <storage>/runs/<run>."),
    kfp=thing(
        "Current attempt: the KFP run that executes the recipe.",
        hash=text("Hash of the spec fields that determine the results."),
        compute=text("Hash of spec.compute, which changes no result, without its prices."),
        name=text("Name of the KFP run."),
        runId=text("KFP's id of the KFP run."),
        state=text("State of the KFP run, as KFP reports it."),
        link=text("Address of the KFP run in KFP's UI, if the operator knows the UI's address."),
        refused={
            "type": "boolean",
            "description": "Whether a new attempt must follow: KFP could not resume this one, or the spec changed.",
        },
    ),
    attempts=whole("Number of attempts so far, each with a KFP run of its own."),
    restarts=whole("Number of restarts in a row after bad luck, such as a storage that is down."),
    restartTime=time("Time of the next restart."),
    retried=text("Last value of the annotation recaption.dev/retry that the operator acted upon."),
    startTime=time("Time when the KFP run was created."),
    completionTime=time("Time when the run succeeded or failed."),
    report=text("URI of the report."),
    datasets=listed(
        "Training sets that the run made.",
        "mixture",
        thing(
            "A training set.",
            ("mixture",),
            mixture=text("Name of its mixture."),
            uri=text("Folder of its tars."),
            pairs=whole("Number of its image-text pairs."),
        ),
    ),
    empty=listed(
        "Mixtures that chose nothing, of which nothing is made.",
        "mixture",
        thing(
            "An empty mixture.",
            ("mixture",),
            mixture=text("Its name."),
            why=text("Samples that each of its rules left, by condition."),
        ),
    ),
    best=thing(
        "Mixture with the best result.",
        mixture=text("Name of the mixture."),
        metric=text("Metric by which it is the best."),
        value=number("Its value of the metric."),
    ),
    bestResult=text("Best mixture and its value, in short."),
    cleaned={"type": "boolean", "description": "Whether the Jobs that the KFP run left in the cluster are deleted."},
)

SCHEDULE = thing(
    "State of the schedule, as the operator observed it.",
    observedGeneration=OBSERVED,
    conditions=conditions("Accepted, DumpsListed or Scheduled"),
    lastScheduleTime=time("Last scheduled time that has an outcome."),
    nextScheduleTime=time("Next scheduled time."),
    lastDump=text("Dump whose Recaption was created last."),
    pending=text("Dump whose Recaption is being created."),
    behind=whole("Number of wanted dumps that were not started."),
    active={
        "type": "array",
        "description": "Names of the Recaptions that are not finished.",
        "items": {"type": "string"},
        "x-kubernetes-list-type": "set",
    },
)
