// What the charts of a page need of Vega, and no more: no maps, forces, trees, word clouds or regressions.
import { transforms } from "vega-dataflow";
import * as encode from "vega-encode";
import { expressionInterpreter } from "vega-interpreter";
import { compile } from "vega-lite";
import { parse } from "vega-parser";
import * as tables from "vega-transforms";
import { View } from "vega-view";
import * as layout from "vega-view-transforms";

Object.assign(transforms, tables, layout, encode);
globalThis.renderer = { compile, parse, View, expressionInterpreter };
