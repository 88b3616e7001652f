"""Small trees in the published layouts: drawn photographs under real file names and label files, every trap planted.

`plant(name, root)` writes one; `EXPECTED[name]` is what its reader must make of it. Also used by the ingest tests.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def drawing(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A fundus-like picture: a lit disc with a bright spot and crooked dark lines, black around it."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image)
    radius = min(width, height) * 0.46
    x, y = width / 2, height / 2
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(200, 100, 50))
    for _ in range(14):
        points = rng.uniform(-0.62, 0.62, (4, 2)) * radius + (x, y)
        pen.line([tuple(point) for point in points], fill=(120, 40, 30), width=max(1, round(radius / 18)))
    spot = rng.uniform(-0.5, 0.5, 2) * radius + (x, y)
    pen.ellipse((*(spot - radius / 8), *(spot + radius / 8)), fill=(250, 220, 150))
    return image


def photograph(seed: int, form: str = "JPEG", **kwargs: int) -> bytes:
    buffer = io.BytesIO()
    drawing(seed, **kwargs).save(buffer, form)
    return buffer.getvalue()


def saved(image: Image.Image, form: str = "PNG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def pictures(*paths: str, first: int = 0) -> dict[str, bytes | str]:
    return {
        path: photograph(first + index, "PNG" if path.lower().endswith("png") else "JPEG")
        for index, path in enumerate(paths)
    }


def ddr(root: Path) -> Path:
    return write(
        root,
        {
            **pictures(
                "DR_grading/train/007-0004-000.jpg",
                "DR_grading/train/20170413102628830.jpg",
                "DR_grading/train/007-1782-100.JPG",  # upper-case extension
                "DR_grading/train/007-0009-001.jpg",  # not in the list
                "DR_grading/valid/007-2500-200.jpg",
                "DR_grading/test/007-3001-300.jpg",
                "DR_grading/test/20170721164413922.jpg",
                "lesion_segmentation/train/image/007-0004-000.jpg",  # another task's photographs
            ),
            "DR_grading/train/._007-0004-000.jpg": b"macOS",
            "DR_grading/train.txt": "007-0004-000.jpg 0\n20170413102628830.jpg 0\r\n007-1782-100.jpg 5\n"
            "007-9999-999.jpg 2\n\n",  # the last has no file
            "DR_grading/valid.txt": "007-2500-200.jpg 7\n",  # no such grade
            "DR_grading/test.txt": "007-3001-300.jpg 3\n20170721164413922.jpg 2\n",
            "lesion_segmentation/train.txt": "007-0004-000.jpg 4\n",
        },
    )


def eyepacs(root: Path) -> Path:
    return write(
        root,
        {
            **pictures("train/10_left.jpeg", "train/10_right.jpeg", "train/13_left.jpeg", "test/1_left.jpeg"),
            "train/492_right.jpeg": photograph(9)[:700],  # the known unreadable file
            "trainLabels.csv": "image,level\n10_left,0\n10_right,1\n13_left,\n492_right,2\n15_left,4\n",
        },
    )


def aptos(root: Path) -> Path:
    return write(
        root,
        {
            **pictures(
                "train_images/000c1434d8d7.png", "train_images/001639a390f0.png", "test_images/0005cfc8afb6.png"
            ),
            "train.csv": "id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n001639a390f0,3\n",
            "test.csv": "id_code\n0005cfc8afb6\n",
        },
    )


def idrid(root: Path) -> Path:
    base = "B. Disease Grading"
    header = "Image name,Retinopathy grade,Risk of macular edema ,,,,,\n"
    train, test = f"{base}/1. Original Images/a. Training Set", f"{base}/1. Original Images/b. Testing Set"
    return write(
        root,
        {
            **pictures(f"{train}/IDRiD_001.jpg", f"{train}/IDRiD_002.jpg", f"{test}/IDRiD_001.jpg"),
            f"{base}/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv": header
            + "IDRiD_001,3,2,,,,,\nIDRiD_002 ,4 ,0\n,,,,,,,\n,,,,,,,\n",
            f"{base}/2. Groundtruths/b. IDRiD_Disease Grading_Testing Labels.csv": "\ufeff"
            + header
            + "IDRiD_001,0,0,,,,,\n",
            "A. Segmentation/1. Original Images/a. Training Set/IDRiD_01.jpg": photograph(40),
        },
    )


def messidor2(root: Path) -> Path:
    return write(
        root,
        {
            **pictures("IMAGES/20051020_43808_0100_PP.png", "IMAGES/IM004176.JPG", "IMAGES/IM000022.JPG"),
            "messidor_data.csv": "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
            "20051020_43808_0100_PP.jpg,0,0,1\nIM004176.jpg,2,0,1\nIM000022.jpg,,,0\n",
        },
    )


def deepdrid(root: Path) -> Path:
    header = (
        "patient_id,image_id,image_path,Overall quality,left_eye_DR_Level,right_eye_DR_Level,patient_DR_Level,"
        "Clarity,Field definition,Artifact\n"
    )
    base = "regular_fundus_images"
    train, validation = f"{base}/regular-fundus-training", f"{base}/regular-fundus-validation"
    test = f"{base}/Online-Challenge1&2-Evaluation"
    return write(
        root,
        {
            **pictures(
                f"{train}/Images/1/1_l1.jpg",
                f"{train}/Images/1/1_r1.jpg",
                f"{validation}/Images/265/265_r2.jpg",
                f"{test}/Images/347/347_l1.jpg",
            ),
            f"{train}/regular-fundus-training.csv": header
            + "1,1_l1,\\regular-fundus-training\\1\\1_l1.jpg,1,1,,3,10,10,0\n"
            + "1,1_r1,\\regular-fundus-training\\1\\1_r1.jpg,1,,3.0,3,10,10,0\n",
            f"{validation}/regular-fundus-validation.csv": header
            + "265,265_r2,\\regular-fundus-validation\\265\\265_r2.jpg,0,,5,5,1,4,8\n",
            f"{test}/Challenge1_labels.csv": "image_id,DR_Levels\n347_l1,4\n",
        },
    )


def fgadr(root: Path) -> Path:
    return write(
        root,
        {
            **pictures("Seg-set/Original_Images/0000_1.png", "Seg-set/Original_Images/0001_3.png"),
            "Seg-set/Microaneurysms_Masks/0000_1.png": photograph(50, "PNG"),
            "Seg-set/DR_Seg_Grading_Label.csv": "0000_1.png,2\n0001_3.png,4\n",
        },
    )


def folder(root: Path) -> Path:
    return write(
        root,
        {
            **pictures(
                "train/0/a.jpg", "train/4/a.jpg", "Valid/2/b.TIF", "test/ungradable/c.jpg", "prior/unlabelled/d.jpg"
            ),
            **pictures("test/9/e.jpg", first=20),
            "train/0/notes.txt": "no photograph",
            "train/0/.DS_Store": b"x",
        },
    )


def csv(root: Path) -> Path:
    return write(
        root,
        {
            **pictures("photos/a.jpg", "photos/b.jpg", "photos/c.jpg", "other/z.jpg"),
            "labels.csv": "Path;Grade;Patient_ID;Split\nphotos/a.jpg;1;p1;train\n"
            "photos\\b.jpg;2.0;p2;test\nphotos/q.jpg;0;p3;\n",
            "unrelated.csv": "alpha,beta\n1,2\n",
        },
    )


PLANTERS = {
    planter.__name__: planter for planter in (ddr, eyepacs, aptos, idrid, messidor2, deepdrid, fgadr, folder, csv)
}


def plant(name: str, root: Path) -> Path:
    return PLANTERS[name](root)


# (image_id, split, patient_id, grade, gradable, stratum) in order of image_id.
Expected = list[tuple[str, str | None, str | None, int | None, bool, str | None]]
EXPECTED: dict[str, Expected] = {
    "ddr": [
        ("DDR/007-0004-000", "train", None, 0, True, "coded"),
        ("DDR/007-1782-100", "train", None, None, False, "coded"),
        ("DDR/007-3001-300", "test", None, 3, True, "coded"),
        ("DDR/20170413102628830", "train", None, 0, True, "timestamp"),
        ("DDR/20170721164413922", "test", None, 2, True, "timestamp"),
    ],
    "eyepacs": [
        ("EyePACS/10_left", None, "EyePACS/10", 0, True, None),
        ("EyePACS/10_right", None, "EyePACS/10", 1, True, None),
        ("EyePACS/1_left", "prior", "EyePACS/1", None, True, None),
        ("EyePACS/492_right", None, "EyePACS/492", 2, True, None),
    ],
    "aptos": [
        ("APTOS/0005cfc8afb6", "prior", None, None, True, None),
        ("APTOS/000c1434d8d7", None, None, 2, True, None),
    ],
    "idrid": [
        ("IDRiD/test/IDRiD_001", "test", None, 0, True, None),
        ("IDRiD/train/IDRiD_001", "train", None, 3, True, None),
        ("IDRiD/train/IDRiD_002", "train", None, 4, True, None),
    ],
    "messidor2": [
        ("Messidor-2/20051020_43808_0100_PP", "external", None, 0, True, "messidor1"),
        ("Messidor-2/IM000022", "external", None, None, False, "extension"),
        ("Messidor-2/IM004176", "external", None, 2, True, "extension"),
    ],
    "deepdrid": [
        ("DeepDRiD/1_l1", "train", "DeepDRiD/1", 1, True, None),
        ("DeepDRiD/1_r1", "train", "DeepDRiD/1", 3, True, None),
        ("DeepDRiD/265_r2", "validation", "DeepDRiD/265", None, False, None),
        ("DeepDRiD/347_l1", "test", "DeepDRiD/347", 4, True, None),
    ],
    "fgadr": [
        ("FGADR/0000_1", None, None, 2, True, "site 1"),
        ("FGADR/0001_3", None, None, 4, True, "site 3"),
    ],
    "folder": [
        ("mine/Valid/2/b", "validation", None, 2, True, None),
        ("mine/prior/unlabelled/d", "prior", None, None, True, None),
        ("mine/test/ungradable/c", "test", None, None, False, None),
        ("mine/train/0/a", "train", None, 0, True, None),
        ("mine/train/4/a", "train", None, 4, True, None),
    ],
    "csv": [
        ("mine/photos/a", "train", "mine/p1", 1, True, None),
        ("mine/photos/b", "test", "mine/p2", 2, True, None),
    ],
}

# (name, reason) in order of name.
EXPECTED_REJECTED: dict[str, list[tuple[str, str]]] = {
    "ddr": [
        ("007-9999-999.jpg", "label without file"),
        ("DR_grading/train/007-0009-001.jpg", "file without label"),
        ("DR_grading/valid/007-2500-200.jpg", "label out of range"),
    ],
    "eyepacs": [("15_left", "label without file"), ("train/13_left.jpeg", "label missing")],
    "aptos": [("train_images/001639a390f0.png", "conflicting labels")],
    "idrid": [],
    "messidor2": [],
    "deepdrid": [],
    "fgadr": [],
    "folder": [("test/9/e.jpg", "label out of range")],
    "csv": [("photos/c.jpg", "file without label"), ("photos/q.jpg", "label without file")],
}
