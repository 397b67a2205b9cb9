package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/armature-go/armature/service/api"
)

// This file has the JSON Schemas of queries. They accept what Nova 2.1 accepts.

// fields are the parameters of a query, by name.
type fields map[string]string

// querySchema is the schema of a query with these parameters. A parameter may occur any number of times. Other parameters are
// ignored, as in Nova until microversion 2.75.
func querySchema(params fields) []api.Schema {
	var properties []string
	for _, name := range slices.Sorted(maps.Keys(params)) {
		properties = append(properties, fmt.Sprintf("%q: %s", name, `{"type": "array", "items": `+params[name]+`}`))
	}
	return []api.Schema{{JSON: `{"type": "object", "additionalProperties": true, "properties": {` + strings.Join(properties, ", ") + `}}`}}
}

// oneOf is the schema of a text that is one of the keys of columns.
func oneOf(columns map[string]string) string {
	return fmt.Sprintf(`{"enum": ["%s"]}`, strings.Join(slices.Sorted(maps.Keys(columns)), `", "`))
}

// withFilters adds the filters of servers to the parameters of a query.
func withFilters(params fields) fields {
	for _, name := range filterNames() {
		params[name] = anything
	}
	return params
}

// Values of parameters.
const (
	anything = `{"type": "string"}`
	digits   = `{"type": "string", "pattern": "^[0-9]*$"}`
)

var (
	flavorQuery = querySchema(fields{
		"limit": digits, "marker": anything, "is_public": anything, "minRam": anything, "minDisk": anything,
		"sort_key": oneOf(flavorSorts), "sort_dir": `{"enum": ["asc", "desc"]}`,
	})
	serverQuery = querySchema(withFilters(fields{
		"limit": digits, "marker": anything, "all_tenants": anything, "sort_key": oneOf(serverSorts), "sort_dir": anything,
	}))
	serviceQuery = querySchema(fields{"host": anything, "binary": anything})
)
