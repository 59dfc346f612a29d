"""Open a report in a real browser, without a display, and use it as a person would.

    .venv-browser/bin/python tests/clients/browse.py page.html shot.png

What the browser is like, its theme, say, stands in the environment: test_reports.py has it.
Prints one JSON object: what the console said, and what the page showed after each deed.
"""

import json
import os
import sys

from PyQt6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl
from PyQt6.QtTest import QTest
from PyQt6.QtWebEngineCore import QWebEnginePage
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

DEADLINE_MS = 30_000


class Page(QWebEnginePage):
    """A page that keeps what its console says."""

    said: list[str] = []  # noqa: RUF012

    def javaScriptConsoleMessage(self, level, message, line, source):
        self.said.append(f"{level.name} {message} (line {line})")


def wait(milliseconds):
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def ask(script):
    """Run a script in the page; give what it comes to."""
    loop, answers = QEventLoop(), []
    page.runJavaScript(script, lambda value: (answers.append(value), loop.quit()))
    QTimer.singleShot(DEADLINE_MS, loop.quit)
    loop.exec()
    return answers[0]


def click(selector, across=0.5):
    """Click into an element with the mouse, so far across it."""
    x, y = json.loads(
        ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            f"return JSON.stringify([b.left + b.width * {across}, b.top + b.height / 2]); }})()"
        )
    )
    QTest.mouseClick(view.focusProxy(), Qt.MouseButton.LeftButton, pos=QPoint(round(x), round(y)))
    wait(600)


def press(key):
    QTest.keyClick(view.focusProxy(), key)
    wait(600)


def state():
    return json.loads(
        ask(
            "JSON.stringify({clock: document.getElementById('clock').textContent,"
            "player: player.hidden ? null : player.currentTime,"
            "ready: player.readyState, title: document.title,"
            "now: document.querySelector('.person .line').getAttribute('aria-valuetext'),"
            "people: document.querySelectorAll('.person').length,"
            "faces: document.querySelectorAll('.faces img').length,"
            "rows: document.querySelectorAll('tbody tr').length,"
            "paper: getComputedStyle(document.body).backgroundColor,"
            "word: document.getElementById('novideo').hidden})"
        )
    )


application = QApplication(sys.argv[:1])
view = QWebEngineView()
page = Page(view)
view.setPage(page)
view.resize(1100, 1300)
view.show()
loaded = QEventLoop()
page.loadFinished.connect(loaded.quit)
view.load(QUrl.fromLocalFile(sys.argv[1]))
QTimer.singleShot(DEADLINE_MS, loaded.quit)
loaded.exec()
for _ in range(100):  # until the video knows its length, or cannot be played
    if ask("!player.src || player.readyState > 1 || player.error !== null"):
        break
    wait(100)
wait(500)
view.grab().save(sys.argv[2])
done = {"at first": state()}
click(".person .line", 0.5)
done["clicked in the middle"] = state()
press(Qt.Key.Key_Right)
done["one step on"] = state()
press(Qt.Key.Key_Home)
done["home"] = state()
click(".faces button")
done["clicked a face"] = state()
print(json.dumps({"console": Page.said, **done}))
sys.stdout.flush()
os._exit(0)  # Qt's own end waits for processes that a test need not wait for
