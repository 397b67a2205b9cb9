package api

import (
	"context"
	"net/http"
)

// Discovery is the description of an API that clients can read before they use it. ID is required.
type Discovery struct {
	// ID is the id of the major version, such as "v3".
	ID string
	// Path is the path under which the version is, such as "/v3". Default: the Prefix of Microversions.
	Path string
	// Updated is the time of the last change of the API, such as "2026-11-23T00:00:00Z". Default: the
	// documents do not have it.
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
	"id": {"type": "string"}, "status": {"enum": ["CURRENT"]}, "version": {"type": "string"}, "min_version": {"type": "string"},
	"updated": {"type": "string", "format": "date-time"},
	"links": {"type": "array", "items": {"type": "object", "additionalProperties": false, "required": ["rel", "href"],
		"properties": {"rel": {"type": "string"}, "href": {"type": "string"}, "type": {"type": "string"}}}},
	"media-types": {"type": "array", "items": {"type": "object", "additionalProperties": false, "required": ["base", "type"],
		"properties": {"base": {"type": "string"}, "type": {"type": "string"}}}}}}`

// keyedSchema returns the schema of an object with one name.
func keyedSchema(key, schema string) []Schema {
	return []Schema{{JSON: `{"type": "object", "additionalProperties": false, "required": ["` + key + `"], "properties": {"` + key + `": ` + schema + `}}`}}
}

// Discover registers the documents of the API-SIG's version discovery, which are Public. GET / lists the
// only version. GET of the Path, with or without a slash at the end, shows the version with its first and last
// microversion. Discover panics if neither Path nor the Prefix of Microversions is set.
func (m *Mux) Discover(d Discovery) {
	v := versionDocument{ID: d.ID, Status: "CURRENT", Updated: d.Updated}
	if m.versions != nil {
		v.Version, v.MinVersion = m.versions.Max, m.versions.Min
		if d.Path == "" {
			d.Path = m.versions.Prefix
		}
	}
	if d.Path == "" {
		panic("api: Discover: Path is empty, and so is the Prefix of Microversions: set one of them")
	}
	at := func(r *http.Request) versionDocument {
		v := v
		v.Links = []Link{{Rel: "self", Href: Base(r) + d.Path + "/"}}
		return v
	}
	HandleRoute(m, Route{
		Pattern: "GET /{$}", Public: true, Summary: "List the versions of the API",
		Reply: keyedSchema("versions", `{"type": "array", "items": `+versionSchema+`}`),
	}, func(_ context.Context, r *Request[None]) (map[string][]versionDocument, error) {
		return map[string][]versionDocument{"versions": {at(r.Request)}}, nil
	})
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
