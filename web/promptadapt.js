// Shows on our nodes what they found: ComfyUI's front end shows no text of custom nodes by itself.
import { app } from "../../scripts/app.js";

const SHOWN = "promptadapt_shown";
const WITH_TEXT = [
    "PromptAdaptAdapt",
    "PromptAdaptAestheticReward",
    "PromptAdaptRefine",
    "PromptAdaptCompare",
];

function shownWidget(node) {
    const known = node.widgets?.find((widget) => widget.name === SHOWN);
    if (known) return known;
    const widget = app.widgets.STRING(node, SHOWN, ["STRING", { multiline: true }], app).widget;
    widget.label = " ";
    widget.options.serialize = false; // not sent with the prompt
    widget.serialize = false; // not saved in the workflow
    const element = widget.element ?? widget.inputEl;
    if (element) {
        element.readOnly = true;
        element.style.opacity = 0.75;
        element.placeholder = "";
    }
    return widget;
}

function show(node, text) {
    const widget = shownWidget(node);
    widget.value = text;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
    app.graph.setDirtyCanvas(true, false);
}

app.registerExtension({
    name: "promptadapt.shown",
    async beforeRegisterNodeDef(nodeType, nodeData) {
        if (!WITH_TEXT.includes(nodeData.name)) return;
        const executed = nodeType.prototype.onExecuted;
        nodeType.prototype.onExecuted = function (output) {
            executed?.apply(this, arguments);
            if (output?.text) show(this, output.text.join("\n\n"));
        };
    },
});
