package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
)

// Discovery is the description of a version of an API. Clients can read it before they use the API. ID is required.
type Discovery struct {
	// ID is the id of the major version, such as "v3".
	ID string
	// Status is CURRENT, SUPPORTED, DEPRECATED or EXPERIMENTAL. Default CURRENT.
	Status string
	// Path is the path of the version, such as "/v3". Default: the Prefix of Microversions.
	Path string
	// Updated is the time of the last change of the API, such as "2026-11-23T00:00:00Z". Default: the documents have no such time.
	Updated string
	// Links and MediaTypes are added to the document at Path.
	Links      []Link
	MediaTypes []MediaType
}

// MediaType is a media type of the API's bodies.
type MediaType struct {
	Base string `json:"base"`
	Type string `json:"type"`
}

// versionDocument describes a version in the form of the API-SIG's version discovery.
type versionDocument struct {
	ID         string      `json:"id"`
	Status     string      `json:"status"`
	Version    string      `json:"version"`
	MinVersion string      `json:"min_version"`
	Updated    string      `json:"updated,omitempty"`
	Links      []Link      `json:"links"`
	MediaTypes []MediaType `json:"media-types,omitempty"`
}

const versionSchema = `{"type": "object", "additionalProperties": false, "required": ["id", "status", "version", "min_version", "links"], "properties": {
	"id": {"type": "string"}, "status": {"enum": ["CURRENT", "SUPPORTED", "DEPRECATED", "EXPERIMENTAL"]}, "version": {"type": "string"}, "min_version": {"type": "string"},
	"updated": {"type": "string", "format": "date-time"},
	"links": {"type": "array", "items": {"type": "object", "additionalProperties": false, "required": ["rel", "href"],
		"properties": {"rel": {"type": "string"}, "href": {"type": "string"}, "type": {"type": "string"}}}},
	"media-types": {"type": "array", "items": {"type": "object", "additionalProperties": false, "required": ["base", "type"],
		"properties": {"base": {"type": "string"}, "type": {"type": "string"}}}}}}`

// keyedSchema returns the schema of an object with one property, whose name is the parameter key.
func keyedSchema(key, schema string) []Schema {
	return []Schema{{JSON: `{"type": "object", "additionalProperties": false, "required": ["` + key + `"], "properties": {"` + key + `": ` + schema + `}}`}}
}

// Discover registers the documents of the API-SIG's version discovery, which are Public. GET of the Path, with or without a slash
// at the end, returns the version. If the Path is under the Prefix of Microversions, this document has the first and the last
// microversion. GET / lists all versions for which Discover was called, in the order of the calls. Discover panics if neither Path
// nor the Prefix of Microversions is set, or if Status has another value than those of [Discovery].
func (m *Mux) Discover(d Discovery) {
	if d.Path == "" && m.versions != nil {
		d.Path = m.versions.Prefix
	}
	if d.Path == "" {
		panic("api: Discover: Path is empty, and so is the Prefix of Microversions: set one of them")
	}
	v := versionDocument{ID: d.ID, Status: cmp.Or(d.Status, "CURRENT"), Updated: d.Updated}
	if !slices.Contains(versionStatuses, v.Status) {
		panic(fmt.Sprintf("api: Discover: Status is %q: use one of %q", v.Status, versionStatuses))
	}
	if m.versions != nil && m.versions.coversPath(d.Path) {
		v.Version, v.MinVersion = m.versions.Max, m.versions.Min
	}
	at := func(r *http.Request) versionDocument {
		v := v
		v.Links = []Link{{Rel: "self", Href: Base(r) + d.Path + "/"}}
		return v
	}
	m.discovered = append(m.discovered, at)
	if len(m.discovered) == 1 {
		HandleRoute(m, Route{
			Pattern: "GET /{$}", Public: true, Summary: "List the versions of the API",
			Reply: keyedSchema("versions", `{"type": "array", "items": `+versionSchema+`}`),
		}, m.listVersions)
	}
	for _, pattern := range []string{"GET " + d.Path + "/{$}", "GET " + d.Path} {
		HandleRoute(m, Route{
			Pattern: pattern, Public: true, Summary: "Show the version of the API",
			Reply: keyedSchema("version", versionSchema), Errors: []int{http.StatusBadRequest, http.StatusNotAcceptable},
		}, func(_ context.Context, r *Request[None]) (map[string]versionDocument, error) {
			v := at(r.Request)
			v.Links, v.MediaTypes = append(v.Links, d.Links...), d.MediaTypes
			return map[string]versionDocument{"version": v}, nil
		})
	}
}

// versionStatuses are the values of [Discovery].Status.
var versionStatuses = []string{"CURRENT", "SUPPORTED", "DEPRECATED", "EXPERIMENTAL"}

func (m *Mux) listVersions(_ context.Context, r *Request[None]) (map[string][]versionDocument, error) {
	list := make([]versionDocument, len(m.discovered))
	for i, at := range m.discovered {
		list[i] = at(r.Request)
	}
	return map[string][]versionDocument{"versions": list}, nil
}
