"""The Arrow schemas of the data contract: what each table holds, column by column.

Written explicitly so that a reader never infers, and checked on every read and write. Encoded
images are `large_binary`: a row group of many photographs passes the 2 GiB of `binary`.
"""

import pyarrow as pa

REAL = pa.schema(
    [
        ("image_id", pa.string()),  # "{dataset}/{name}", unique in a run
        ("dataset", pa.string()),
        ("split", pa.string()),  # train, validation, test, prior, external, fresh (phantoms: for the ceiling arm)
        ("fold", pa.int8()),  # the fold that validates on this row; null = none
        ("patient_id", pa.string()),  # null where the source has none
        ("grade", pa.int8()),  # 0-4; null = ungraded or ungradable
        ("gradable", pa.bool_()),
        ("stratum", pa.string()),  # acquisition source inside a dataset, for reporting only
        ("image", pa.large_binary()),  # encoded, cropped, padded to a square
        ("width", pa.int32()),  # of `image`, px
        ("height", pa.int32()),
        ("source_width", pa.int32()),  # of the file it came from, px; null for phantoms
        ("source_height", pa.int32()),
        ("sha256", pa.string()),  # of `image`
        ("phash", pa.string()),  # 64-bit perceptual hash, 16 hex digits
        ("lesions", pa.string()),  # phantoms: the lesion ledger as JSON; null otherwise
        # From here on a column that came later: null in the rows of earlier versions.
        ("source_border", pa.list_(pa.float32())),  # black of all, of corners, of edges, before the crop; else null
    ]
)

# The frozen parts of the base on photographs and prompts, float32 in C order.
LATENTS = pa.schema(
    [
        ("sha256", pa.string()),  # of the photograph's encoded bytes
        ("channels", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mean", pa.large_binary()),  # (2, channels, height, width): the image, its mirror; scaled
        ("std", pa.large_binary()),
    ]
)
EMBEDDINGS = pa.schema(
    [
        ("prompt", pa.string()),
        ("tokens", pa.int32()),
        ("width", pa.int32()),
        ("values", pa.large_binary()),  # (tokens, width)
    ]
)

SAMPLER = pa.struct(
    [
        ("name", pa.string()),
        ("steps", pa.int32()),
        ("guidance", pa.float32()),
        ("batch", pa.int32()),  # static compute batch the pixels were made in
    ]
)

SYNTHETIC = pa.schema(
    [
        ("sample_id", pa.string()),  # "{generator_id}/g{grade}/{index}"
        ("generator_id", pa.string()),
        ("kind", pa.string()),  # plain, ecc
        ("fold", pa.int8()),
        ("grade", pa.int8()),  # intended
        ("index", pa.int64()),
        ("seed", pa.uint64()),
        ("prompt", pa.string()),
        ("sampler", SAMPLER),
        ("image", pa.large_binary()),
        ("sha256", pa.string()),
        ("blank", pa.bool_()),
        ("valid_fundus", pa.bool_()),
        ("nearest_image_id", pa.string()),
        ("nearest_distance", pa.float32()),
        ("ensemble_id", pa.string()),
        ("probabilities", pa.list_(pa.list_(pa.float32()))),  # members x 5, raw softmax
        ("score", pa.float32()),  # mean over members of the intended grade's probability
        ("device", pa.string()),
        ("versions", pa.string()),
        ("synthetic", pa.bool_()),
        # From here on columns that came later: null in the rows of earlier versions.
        ("disagreement", pa.float32()),  # standard deviation over members of the intended grade's probability
    ]
)

SCORES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("ensemble_id", pa.string()),
        ("probabilities", pa.list_(pa.list_(pa.float32()))),
        ("score", pa.float32()),
        # From here on columns that came later: null in the rows of earlier versions.
        ("disagreement", pa.float32()),
    ]
)

TRIALS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("arm", pa.string()),
        ("purpose", pa.string()),  # arm (reported on test), map (band x ratio) and search (validation only), probe
        ("band_low", pa.float32()),
        ("band_high", pa.float32()),
        ("ratio", pa.float32()),
        ("backbone", pa.string()),
        ("loss", pa.string()),
        ("sampler", pa.string()),
        ("seed", pa.int32()),
        ("fold", pa.int8()),
        ("replicate", pa.int32()),
        ("steps", pa.int32()),
        ("num_real", pa.int64()),
        ("num_synthetic", pa.list_(pa.int64())),  # per grade
        ("shortage", pa.list_(pa.int64())),  # per grade: asked for but not there
        ("validation_balanced_accuracy", pa.float32()),
        ("balanced_accuracy", pa.float32()),  # test; null for maps
        ("accuracy", pa.float32()),
        *[(f"recall_{grade}", pa.float32()) for grade in range(5)],
        ("seconds", pa.float32()),
        # From here on columns that came later: null in the rows of earlier versions.
        ("loss_parameter", pa.float32()),  # 0 = the loss's own default
        ("mixup", pa.float32()),
        ("soft_labels", pa.float32()),
        ("learning_rate", pa.float32()),
        ("weight_decay", pa.float32()),
    ]
)

PREDICTIONS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("split", pa.string()),  # validation, test, external; a probe's own name
        ("image_id", pa.string()),
        ("grade", pa.int8()),
        ("prediction", pa.int8()),
        ("probabilities", pa.list_(pa.float32())),
    ]
)

# What `raydr select` exports: one row an image that a grader may train on.
TRAINING = pa.schema(
    [
        ("image_id", pa.string()),  # of a synthetic image its sample_id
        ("synthetic", pa.bool_()),
        ("grade", pa.int8()),  # graded by a person, or intended
        ("image", pa.large_binary()),
        ("sha256", pa.string()),  # of `image`
        ("dataset", pa.string()),  # of the photograph, or of the photographs that the generator was tuned on
        ("patient_id", pa.string()),  # null for synthetic images
        ("generator_id", pa.string()),  # null for photographs, and so are the rest
        ("ensemble_id", pa.string()),
        ("score", pa.float32()),
        ("nearest_distance", pa.float32()),
    ]
)

QUARANTINE = pa.schema(
    [
        ("table", pa.string()),
        ("key", pa.string()),  # path, sample id or shard key
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


# Tables that have grown at their end: with so many columns earlier versions wrote them.
GREW = ((TRIALS, 25), (REAL, 16), (SYNTHETIC, 21), (SCORES, 4))


def versions(schema: pa.Schema) -> list[pa.Schema]:
    """`schema` and what earlier versions wrote of it: these read as `schema`, with null in the later columns."""
    return [schema, *(pa.schema(list(schema)[:count]) for grown, count in GREW if schema.equals(grown))]


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `table` with exactly the columns, order and types of `schema`.

    Raises ValueError naming the first missing column; extra columns are refused too, because a
    column that no reader knows is a typo more often than a wish.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        raise ValueError(f"table does not fit its schema: missing {missing}, unexpected {extra}")
    return table.select(schema.names).cast(schema)
