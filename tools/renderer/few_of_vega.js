// Vega-Lite takes four small functions from "vega", which would bring all of it along.
export { hasOwnProperty, isObject, isString, stringValue } from "vega-util";
