package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/armature-go/armature/service/api/apitest"
)

// judge compares the replies of the API with the API's OpenAPI document.
type judge struct {
	*testing.T

	base     string
	doc      document
	compiler *jsonschema.Compiler
	client   *http.Client
	seen     map[string]bool // method, path and status, or method, path and action
}

func newJudge(t *testing.T, base string, raw []byte) *judge {
	t.Helper()
	j := &judge{T: t, base: base, doc: parse(t, raw), compiler: jsonschema.NewCompiler(), seen: map[string]bool{}}
	checker, err := apitest.NewChecker(raw)
	if err != nil {
		t.Fatal(err)
	}
	connections := &http.Transport{}
	j.client = &http.Client{Transport: checker.Transport(connections)}
	t.Cleanup(connections.CloseIdleConnections)
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	j.compiler.DefaultDraft(jsonschema.Draft2020)
	j.compiler.AssertFormat()
	if err := j.compiler.AddResource("mem:///openapi.json", parsed); err != nil {
		t.Fatal(err)
	}
	return j
}

// check validates a text against the schema at a place in the document.
func (j *judge) check(raw []byte, place ...string) error {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	pointer := []string{"mem:///openapi.json#"}
	for _, step := range append(place, "content", "application/json", "schema") {
		pointer = append(pointer, url.PathEscape(escape.Replace(step)))
	}
	s, err := j.compiler.Compile(strings.Join(pointer, "/"))
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// param matches a parameter in a path, such as {id}.
var param = regexp.MustCompile(`\{\w+\}`)

// do sends a request, and checks the reply against the document. The parameter want is the expected status. The values replace the
// parameters of the path, one after the other; a value that begins with ? is the query.
func (j *judge) do(want int, method, path, body string, values ...string) []byte {
	j.Helper()
	op, ok := j.doc.Paths[path][strings.ToLower(method)]
	if !ok {
		j.Fatalf("the document has no %s %s", method, path)
	}
	at := path
	for _, v := range values {
		if strings.HasPrefix(v, "?") {
			at += v
			j.checkQuery(op, v)
			continue
		}
		if place := param.FindStringIndex(at); place != nil {
			at = at[:place[0]] + url.PathEscape(v) + at[place[1]:]
		}
	}
	status, header, reply := j.send(method, at, body)
	what := fmt.Sprintf("%s %s %s = %d %.500s", method, at, body, status, reply)
	if status != want {
		j.Fatalf("%s, want %d", what, want)
	}
	if (body != "") != (op.RequestBody != nil) {
		j.Errorf("%s: the document has a body: %v", what, op.RequestBody != nil)
	}
	if body != "" && status < 400 {
		if err := j.check([]byte(body), "paths", path, strings.ToLower(method), "requestBody"); err != nil {
			j.Errorf("%s was accepted, but the document does not allow the body: %v", what, err)
		}
	}
	response, ok := op.Responses[strconv.Itoa(status)]
	switch {
	case !ok:
		j.Errorf("%s: the document does not have the status", what)
	case response.Content == nil:
		if len(reply) > 0 {
			j.Errorf("%s: the document has no body", what)
		}
	case len(reply) == 0 && response.Optional:
	case header.Get("Content-Type") != "application/json":
		j.Errorf("%s: the type is %s", what, header.Get("Content-Type"))
	default:
		if err := j.check(reply, "paths", path, strings.ToLower(method), "responses", strconv.Itoa(status)); err != nil {
			j.Errorf("%s: %v", what, err)
		}
	}
	j.saw(op, method, path, status, body)
	return reply
}

// saw records that an operation of the document was tested, with a status and an action.
func (j *judge) saw(op operationDoc, method, path string, status int, body string) {
	j.seen[fmt.Sprintf("%s %s: %d", method, path, status)] = true
	var sent map[string]any
	if len(op.actions()) > 0 && status < 400 && json.Unmarshal([]byte(body), &sent) == nil {
		for name := range sent {
			j.seen[fmt.Sprintf("%s %s: %s", method, path, name)] = true
		}
	}
}

// checkQuery checks that the document has the parameters of a query.
func (j *judge) checkQuery(op operationDoc, query string) {
	j.Helper()
	q, err := url.ParseQuery(query[1:])
	if err != nil {
		j.Fatal(err)
	}
	for name := range q {
		if !slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == name && p.In == "query" }) {
			j.Errorf("the document does not have the parameter %s", name)
		}
	}
}

func (j *judge) send(method, path, body string) (int, http.Header, []byte) {
	j.Helper()
	r, err := http.NewRequestWithContext(j.Context(), method, j.base+path, strings.NewReader(body))
	if err != nil {
		j.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("OpenStack-API-Version", "compute 2.1")
	resp, err := j.client.Do(r)
	if err != nil {
		j.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		j.Fatal(err)
	}
	return resp.StatusCode, resp.Header, raw
}

// await waits until a server has a status and no task.
func (j *judge) await(id, status string) {
	j.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for {
		raw := j.do(200, "GET", "/v2.1/servers/{id}", "", id)
		var got struct {
			Server struct {
				Status string
				Task   *string `json:"OS-EXT-STS:task_state"`
			}
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			j.Fatal(err)
		}
		if got.Server.Status == status && got.Server.Task == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			j.Fatalf("the server is %s, want %s: %s", got.Server.Status, status, raw)
		}
	}
}

// missed returns the replies and the actions of the document that were not tested. Errors that a test can hardly cause do not count.
func (j *judge) missed() (out []string) {
	for path, ops := range j.doc.Paths {
		for method, op := range ops {
			what := strings.ToUpper(method) + " " + path + ": "
			for status := range op.Responses {
				if ok := status[0] == '2' || status == "404" || status == "409" || status == "400" && op.RequestBody != nil; ok && !j.seen[what+status] {
					out = append(out, what+status)
				}
			}
			for _, name := range op.actions() {
				if !j.seen[what+name] {
					out = append(out, what+name)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}
