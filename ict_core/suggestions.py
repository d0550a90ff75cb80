"""What somebody may have meant by a name that does not exist: a misspelt name, or what it is called elsewhere.

A wrong suggestion is worse than none, which is followed by the list of what there is. So only names within a slip or
two are offered, and those of the table below; never one of several that are as near.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# Settings, and the names that torch, JAX, diffusers, EDM, CM and others have for them, without case and underscores.
# A setting that this version does not have is passed over.
_ELSEWHERE = {
    "curriculum.s0": "startscales startingscales initialscales",
    "curriculum.s1": "endscales endingscales finalscales",
    "curriculum.schedule": "scalemode scaleschedule curriculum",
    "data.crop": "centercrop",
    "data.flip": "hflip horizontalflip mirror randomflip randomhorizontalflip xflip",
    "data.size": "imagesize imgsize imageresolution imgresolution res resolution",
    "data.source": "data datadir datapath dataroot dataset datasetname datasetpath path root traindatadir",
    "eval.every": "evalevery evalfreq evalfrequency evalinterval evalsteps evaluateevery validationsteps valinterval",
    "eval.metric": "evalmetric",
    "eval.num": "evalnum evalsamples numevalsamples",
    "loss.distance": "lossfn lossfunction lossnorm losstype",
    "loss.weighting": "lossweight lossweighting weightschedule",
    "network.attention_resolutions": "attention attentionresolutions attn attnres attnresolutions",
    "network.blocks": "blocksperlevel depth layersperblock nresblocks numblocks numresblocks resblocks",
    "network.channel_mult": "channelmultiplier channelmultipliers channelmults chmult chmults cres dimmults",
    "network.channels": "basechannels cbase ch dim hiddendim hiddensize modelchannels nf ngf numchannels width",
    "network.checkpoint": "activationcheckpointing checkpointing gradcheckpoint gradcheckpointing gradientcheckpoint "
    "gradientcheckpointing remat usecheckpoint",
    "network.dropout": "droprate dropoutp dropoutprob dropoutrate pdropout",
    "network.embedding": "embeddingtype timeembeddingtype",
    "network.embedding_scale": "fourierscale",
    "network.family": "arch architecture backbone model modeltype networktype",
    "network.fir_kernel": "fir resamplefilter",
    "network.head_channels": "attentionheaddim channelsperhead dimhead headdim numheadchannels",
    "network.num_classes": "classes labeldim nclasses numclassembeds numlabels",
    "network.scale_shift": "adagn scaleshiftnorm usescaleshiftnorm",
    "noise.law": "noisedistribution",
    "sample.second_sigma": "midt secondlevel",
    "teacher.decay": "mu mu0 startema targetema targetemadecay teacherema",
    "teacher.schedule": "targetemamode",
    "train.batch_size": "batch bs globalbatch globalbatchsize minibatchsize trainbatchsize",
    "train.betas": "adambetas",
    "train.checkpoint_every": "checkpointfreq checkpointfrequency checkpointingsteps checkpointinterval ckptevery "
    "ckptinterval saveevery savefreq saveinterval savesteps snapshotfreq",
    "train.clip_norm": "clip clipgrad clipgradnorm clipping gradclip gradclipnorm gradclipping gradientclip "
    "gradientclipping gradientclipval maxgradnorm maxnorm",
    "train.compile": "compilemodel jit torchcompile usecompile",
    "train.ema_decay": "ema emabeta emarate",
    "train.ema_sigma_rel": "emalengths emarelstd emastd emastds phema powerema posthocema sigmarel",
    "train.keep_checkpoints": "checkpointstotallimit keep keeplast maxcheckpoints maxtokeep savetotallimit",
    "train.label_dropout": "cfgdropout classdropout classdropprob conddropout conddropprob labeldrop labeldropprob "
    "labeldropoutprob puncond uncondprob",
    "train.learning_rate": "baselr initlr lr maxlr peaklr rate",
    "train.log_every": "logfreq logfrequency loggingsteps loginterval logsteps printevery printfreq",
    "train.micro_batch": "batchgpu batchpergpu microbatchsize",
    "train.optimizer": "opt optim optimiser optimizername optimizertype",
    "train.precision": "amp autocast bf16 bfloat16 dtype float16 fp16 half mixedprecision tf32 usefp16",
    "train.rate_decay": "lrdecay lrschedule lrscheduler lrschedulertype scheduler",
    "train.sample_every": "previewevery samplefreq sampleinterval samplesteps",
    "train.seed": "manualseed randomseed rng rngseed",
    "train.shard_weights": "fsdp fullyshard shard sharding zero",
    "train.tensorboard": "tb usetensorboard",
    "train.total_steps": "iterations iters maxiter maxiters maxsteps maxtrainsteps niter niters nsteps numiterations "
    "numsteps numtrainsteps steps totaliterations totaliters totaltrainingsteps trainingsteps trainsteps",
    "train.wandb": "usewandb weightsandbiases",
    "train.warmup_steps": "lrwarmup lrwarmupsteps numwarmupsteps warmup warmupiterations warmupiters",
    "train.weight_decay": "wd",
}
# The same for names whose value means something else there: what it is here.
_OTHER_VALUE = {
    "adambeta1 adambeta2 beta1 beta2": ("train.betas", "both in one list"),
    "duration kimg totalkimg": ("train.total_steps", "in steps and not in images"),
    "epochs maxepochs nepochs numepochs numtrainepochs": ("train.total_steps", "in steps and not in epochs"),
    "emahalflife": ("train.ema_decay", "a decay and not a half-life"),
    "gradaccum gradaccumsteps gradaccumulation gradientaccumulationsteps accumulationsteps": (
        "train.micro_batch",
        "in images and not in steps",
    ),
    "huberc huberconstant huberdelta": ("loss.huber_factor", "the constant over the root of an image's size"),
    "lrrampup lrrampupkimg": ("train.warmup_steps", "in steps and not in images"),
    "nheads numheads": ("network.head_channels", "channels a head and not heads"),
}
# Names that say too little to be those of another section.
_VAGUE = {"decay", "every", "metric", "num", "schedule", "size", "steps"}


class Suggestion(NamedTuple):
    """A setting that is meant by another name.

    Attributes:
        name: its dotted name.
        note: how its value differs from that of the other name; "" if it does not.
    """

    name: str
    note: str = ""

    def __str__(self) -> str:
        return self.name + (f" ({self.note})" if self.note else "")


def _spread(table: Mapping[str, str]) -> dict[str, Suggestion]:
    return {word: Suggestion(name) for name, words in table.items() for word in words.split()}


# Every other name -> what it is called here.
OTHER_NAMES = _spread(_ELSEWHERE) | {
    word: Suggestion(*meant) for words, meant in _OTHER_VALUE.items() for word in words.split()
}


def suggest_setting(key: str, sections: Mapping[str, Sequence[str]], section: str = "") -> Suggestion | None:
    """The setting that is meant by a key that its section does not have; None where that is not clear.

    Args:
        key: the key.
        sections: the keys of each section.
        section: the section that was named, whose keys alone are compared with a misspelt one.
    """
    word = plain(key)
    meant = OTHER_NAMES.get(word)
    if meant is not None and _has(sections, meant.name):
        return meant
    near = nearest(key, sections.get(section, ()))
    if near is not None:
        return Suggestion(f"{section}.{near}")
    same = [f"{s}.{k}" for s, keys in sections.items() for k in keys if plain(k) == word and k not in _VAGUE]
    return Suggestion(same[0]) if len(same) == 1 else None


def _has(sections: Mapping[str, Sequence[str]], name: str) -> bool:
    section, _, key = name.partition(".")
    return key in sections.get(section, ())


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that another one is a slip or two from; None where there is none, or several are as near.

    Case, hyphens and underscores do not count. Names with other digits are other names, not misspelt ones.
    """
    word = plain(name)
    slips = {other: distance(word, plain(other)) for other in known if _digits(other) == _digits(name)}
    least = min(slips.values(), default=0)
    near = [other for other, count in slips.items() if count == least and count <= _most_slips(word, plain(other))]
    return near[0] if len(near) == 1 else None


def plain(name: str) -> str:
    """A name in small letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _digits(name: str) -> str:
    return re.sub(r"\D", "", name)


def _most_slips(a: str, b: str) -> int:
    length = max(len(a), len(b))
    return 0 if length < 4 else 1 if length < 8 else 2


def distance(a: str, b: str) -> int:
    """The number of letters to insert, remove, replace or swap with the next one that turn `a` into `b`."""
    before, last = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
