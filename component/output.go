package component

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"unicode"

	"go.yaml.in/yaml/v4"
)

// The formats of lists and objects.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

var formats = []string{formatTable, formatJSON, formatYAML}

// Print prints a list or an object in the format of the flag --output: rows under columns, or data as JSON or YAML. The names of
// fields in YAML are the same as in JSON.
func (t *Tool[O]) Print(columns []string, rows [][]string, data any) error {
	if t.f.output != formatTable {
		return t.printAs(t.f.output, data)
	}
	w := tabwriter.NewWriter(t.Out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, strings.ToUpper(strings.Join(columns, "\t"))) // Flush returns the error
	for _, row := range rows {
		for i := range row {
			row[i] = singleLine(row[i])
		}
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t")) // as above
	}
	return w.Flush()
}

// printAs prints data as JSON or YAML. Several calls print several documents: in YAML, a line "---" is between them.
func (t *Tool[O]) printAs(format string, data any) error {
	if format == formatJSON {
		enc := json.NewEncoder(t.Out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(data)
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	var plain any
	if err := json.Unmarshal(raw, &plain); err != nil {
		return err
	}
	out, err := yaml.Marshal(plain)
	if err != nil {
		return err
	}
	if t.documents++; t.documents > 1 {
		out = append([]byte("---\n"), out...)
	}
	_, err = t.Out.Write(out)
	return err
}

// done prints what a command has done: with --output table a sentence, with json or yaml the data.
func (t *Tool[O]) done(data map[string]any, format string, args ...any) error {
	if t.f.output != formatTable {
		return t.printAs(t.f.output, data)
	}
	_, err := fmt.Fprintf(t.Out, format+"\n", args...)
	return err
}

// singleLine turns a text into one line without control characters, which could affect a terminal.
func singleLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.Join(strings.Fields(s), " "))
}
