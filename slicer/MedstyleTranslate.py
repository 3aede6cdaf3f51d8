"""Translate the loaded volume by a medstyle server: a scripted module of 3D Slicer, in one file.

Slicer needs neither torch nor medstyle. The volume is sent to `medstyle serve` as NIfTI, and the
answer is loaded beside it. Add this folder in Slicer's settings under Modules, Additional module
paths. The functions above the classes need nothing of Slicer.
"""

import base64
import json
import os
import tempfile
import urllib.error
import urllib.request

try:
    import qt
    from slicer.ScriptedLoadableModule import (
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleWidget,
    )

    import slicer
except ImportError:  # outside Slicer, for the part that speaks HTTP
    ScriptedLoadableModule = ScriptedLoadableModuleLogic = ScriptedLoadableModuleWidget = object

URL = "http://127.0.0.1:5101"
NOTICE = "SYNTHETIC - RESEARCH ONLY - NOT FOR DIAGNOSIS"


class ServerError(Exception):
    """What the server, or the network, says against a request."""


def translate(url, image, target="", uncertainty=False, timeout_s=660):
    """Send the bytes of a NIfTI file; return the row of the answer, with its images as bytes.

    Its keys are ``image``, ``uncertainty``, ``interval``, ``domain``, ``ood_score``,
    ``ood_verdict``, ``weights_sha256``, ``warnings`` and ``content_type``.

    Raises:
        ServerError: the server cannot be reached, or refuses the image; with its reason.
    """
    params = {"uncertainty": bool(uncertainty), **({"target": target} if target else {})}
    row = {"image": base64.b64encode(image).decode()}
    body = json.dumps({"dataframe_records": [row], "params": params}).encode()
    [made] = _asked(f"{url.rstrip('/')}/invocations", body, timeout_s)["predictions"]
    for name in ("image", "uncertainty", "interval"):
        made[name] = base64.b64decode(made[name] or "")
    return made


def version(url, timeout_s=10):
    """Return what the server serves: model, version, hash of the weights."""
    return _asked(f"{url.rstrip('/')}/version", None, timeout_s)


def _asked(url, body, timeout_s):
    if not url.startswith(("http://", "https://")):
        raise ServerError(f"{url}: the address must begin with http:// or https://")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise ServerError(_reason(error.read(), error.code)) from None
    except (OSError, ValueError) as error:
        raise ServerError(f"{url}: no answer ({type(error).__name__}); is `medstyle serve` running?") from None


def _reason(content, status):
    try:
        return str(json.loads(content)["message"]).removeprefix("row 0: ")
    except (ValueError, KeyError, TypeError):
        return f"the server answers {status}"


class MedstyleTranslate(ScriptedLoadableModule):
    """What Slicer shows of the module in its list."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Medstyle Translate"
        parent.categories = ["Filtering"]
        parent.contributors = ["medstyle project"]
        parent.helpText = f"Translates a volume by a server of medstyle. {NOTICE}."
        parent.acknowledgementText = "Apache License 2.0"


class MedstyleTranslateWidget(ScriptedLoadableModuleWidget):
    """The panel: server, volume, uncertainty, and a button."""

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = MedstyleTranslateLogic()
        form = qt.QFormLayout()
        self.layout.addLayout(form)
        self.server = qt.QLineEdit(URL)
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        self.uncertainty = qt.QCheckBox()
        self.button = qt.QPushButton("Translate")
        self.said = qt.QLabel(NOTICE)
        self.said.wordWrap = True
        for name, widget in (("Server", self.server), ("Volume", self.volume), ("Uncertainty", self.uncertainty)):
            form.addRow(name, widget)
        form.addRow(self.button)
        form.addRow(self.said)
        self.button.connect("clicked(bool)", self.on_click)
        self.layout.addStretch(1)

    def on_click(self, *_):
        """Translate the chosen volume, and say what came of it."""
        with slicer.util.tryWithErrorDisplay("The translation failed", waitCursor=True):
            node, made = self.logic.run(self.volume.currentNode(), self.server.text, self.uncertainty.checked)
            slicer.util.setSliceViewerLayers(background=node)
            score = f"out-of-distribution {made['ood_verdict']} ({made['ood_score']:.1f} SD)"
            self.said.text = f"{NOTICE}\n{score}\n{made['warnings'] or ''}"


class MedstyleTranslateLogic(ScriptedLoadableModuleLogic):
    """From a node to a file, to the server, and back to a node."""

    def run(self, node, url, uncertainty):
        """Return the new volume node and the row of the answer.

        Raises:
            ServerError: no volume is chosen, or the server refuses it.
        """
        if node is None:
            raise ServerError("choose a volume first")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "volume.nii.gz")  # noqa: PTH118
            slicer.util.exportNode(node, path)
            with open(path, "rb") as file:  # noqa: PTH123
                made = translate(url, file.read(), uncertainty=uncertainty)
            new = self._loaded(made["image"], folder, f"{node.GetName()} SYNTHETIC {made['domain']}")
            for kind in ("uncertainty", "interval"):
                if made[kind]:
                    self._loaded(made[kind], folder, f"{node.GetName()} {kind.upper()} {made['domain']}")
        new.SetAttribute("medstyle.weights_sha256", made["weights_sha256"])
        return new, made

    def _loaded(self, data, folder, name):
        path = os.path.join(folder, "answer.nii.gz")  # noqa: PTH118
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(data)
        return slicer.util.loadVolume(path, properties={"name": name, "show": False})
