package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/api/apitest"
)

// textOrNumber is a number that a client may also send as a text.
type textOrNumber int

func (n *textOrNumber) UnmarshalJSON(raw []byte) error {
	_, err := fmt.Sscanf(strings.Trim(string(raw), `"`), "%d", (*int)(n))
	return err
}

func (textOrNumber) JSONSchema() string {
	return `{"type": ["integer", "string"], "pattern": "^[0-9]+$", "minimum": 1}`
}

type owner struct {
	User    string `json:"user" since:"3.2"`
	Project string `json:"project"`
}

type secrets struct {
	Host string `json:"host" rule:"disk:host"`
	Rack *int   `json:"rack" rule:"disk:rack" since:"3.3"`
}

type attachment struct {
	Server string `json:"server"`
	Device string `json:"device,omitempty" since:"3.4"`
}

// typedDisk has each kind of field whose presence depends on the version or on the caller.
type typedDisk struct {
	hidden      int               //nolint:unused // moves the fields that follow in memory
	ID          string            `json:"id" format:"uuid"`
	Name        string            `json:"name" min:"1" max:"8" pattern:"^[a-z]+$"`
	Description *string           `json:"description" since:"3.2" max:"5"`
	Kind        string            `json:"kind" until:"3.3" enum:"fast,slow"`
	KindName    kindRef           `json:"new_kind" name:"kind" since:"3.4"`
	Size        textOrNumber      `json:"size"`
	Tags        []string          `json:"tags" since:"3.3" max:"2"`
	Meta        map[string]string `json:"meta,omitempty"`
	Attached    []attachment      `json:"attached"`
	Parent      *attachment       `json:"parent" since:"3.2"`
	Created     time.Time         `json:"created" doc:"When the disk was created."`
	Ignored     string            `json:"-"`
	Always      any               `json:"always"`
	owner
	*secrets
}

type kindRef struct {
	Name string `json:"name"`
	Cost int    `json:"cost" since:"3.5" min:"0" max:"10"`
}

type oneDisk struct {
	Disk typedDisk `json:"disk"`
}

var versionsOfDisks = &api.Microversions{Service: "volume", Min: "3.1", Max: "3.5"}

// enforceRoles allows a rule to callers that have a role with the rule's name.
func enforceRoles(ctx context.Context, rule string, _ map[string]any) error {
	if slices.Contains(reqctx.From(ctx).Roles, rule) {
		return nil
	}
	return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
}

// rolesOf returns an identity with the roles in the header X-Auth-Token.
func rolesOf(r *http.Request) (reqctx.Request, error) {
	return reqctx.Request{Roles: strings.Split(r.Header.Get("X-Auth-Token"), ",")}, nil
}

func sampleDisk() typedDisk {
	text, rack := "big", 4
	return typedDisk{
		ID: "b9a4bc4e-9a3f-4d5b-8a3a-0a7b2a3f2a11", Name: "a", Description: &text, Kind: "fast", KindName: kindRef{"fast", 3}, Size: 7, Tags: []string{"x"},
		Attached: []attachment{{"s1", "vda"}}, Parent: &attachment{"p", "vdb"}, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Ignored: "i", Always: 1,
		owner: owner{"u", "p"}, secrets: &secrets{"h", &rack},
	}
}

func newDisks(t *testing.T) *api.Mux {
	t.Helper()
	m := api.New(api.Config{Microversions: versionsOfDisks, Authenticate: rolesOf, Enforce: enforceRoles})
	api.Handle(m, "GET /disk", func(context.Context, *api.Request[api.None]) (oneDisk, error) { return oneDisk{sampleDisk()}, nil })
	api.Handle(m, "GET /any", func(context.Context, *api.Request[api.None]) (any, error) { return oneDisk{sampleDisk()}, nil })
	api.Handle(m, "GET /disks", func(context.Context, *api.Request[api.None]) (*[]*typedDisk, error) {
		one := sampleDisk()
		one.secrets = nil
		return &[]*typedDisk{&one, nil}, nil
	})
	api.Handle(m, "POST /disk", func(_ context.Context, r *api.Request[oneDisk]) (map[string]string, error) {
		return map[string]string{"got": fmt.Sprintf("%+v", r.Body.Disk)}, nil
	})
	return m
}

// keysOf returns the paths of all values in a reply.
func keysOf(t *testing.T, raw []byte) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	var out []string
	var walk func(v any, path string)
	walk = func(v any, path string) {
		switch v := v.(type) {
		case map[string]any:
			for name, one := range v {
				walk(one, path+"."+name)
			}
		case []any:
			for _, one := range v {
				walk(one, path+"[]")
			}
		default:
			out = append(out, strings.TrimPrefix(path, "."))
		}
	}
	walk(v, "")
	slices.Sort(out)
	return out
}

// TestVersionedReply: a reply has exactly the fields that its version has and the caller may see.
func TestVersionedReply(t *testing.T) {
	t.Parallel()
	m := newDisks(t)
	always := []string{"always", "attached[].server", "created", "id", "name", "project", "size"}
	tests := []struct {
		version, roles string
		want           []string
	}{
		{"3.1", "", []string{"kind"}},
		{"3.1", "disk:host", []string{"kind", "host"}},
		{"3.2", "disk:rack", []string{"kind", "description", "parent.server", "user"}},
		{"3.3", "disk:rack", []string{"kind", "description", "parent.server", "user", "tags[]", "rack"}},
		{"3.4", "", []string{"kind.name", "description", "parent.server", "parent.device", "attached[].device", "user", "tags[]"}},
		{"3.5", "disk:host,disk:rack", []string{"kind.name", "kind.cost", "description", "parent.server", "parent.device", "attached[].device", "user", "tags[]", "host", "rack"}},
	}
	for _, tt := range tests {
		for _, path := range []string{"/disk", "/any"} {
			w := send(t, m, "GET", path, "", "OpenStack-API-Version", "volume "+tt.version, "X-Auth-Token", tt.roles)
			var want []string
			for _, name := range append(slices.Clone(always), tt.want...) {
				want = append(want, "disk."+name)
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, keysOf(t, w.Body.Bytes())); diff != "" || w.Code != 200 {
				t.Errorf("%s of %s as %q: status %d (-want +got):\n%s", path, tt.version, tt.roles, w.Code, diff)
			}
			c, err := apitest.NewChecker(m.OpenAPI(api.About{}, must(api.ParseVersion(tt.version))))
			if err != nil {
				t.Fatal(err)
			}
			if path == "/any" { // the document does not have the type of this reply
				continue
			}
			if err := c.Check("GET", path, w.Code, w.Body.Bytes()); err != nil {
				t.Error(err)
			}
		}
	}
	w := send(t, m, "GET", "/disks", "", "OpenStack-API-Version", "volume 3.2", "X-Auth-Token", "disk:host")
	if want := `[{"id":"b9a4bc4e-9a3f-4d5b-8a3a-0a7b2a3f2a11","name":"a","description":"big","kind":"fast","size":7,"attached":[{"server":"s1"}],` +
		`"parent":{"server":"p"},"created":"2026-01-02T03:04:05Z","always":1,"user":"u","project":"p"},null]`; w.Body.String() != want {
		t.Errorf("list:\n%s\nwant\n%s", w.Body, want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestVersionedBody: a body may have exactly the fields that its version has and the caller may use, with values that fit the
// tags.
func TestVersionedBody(t *testing.T) {
	t.Parallel()
	m := newDisks(t)
	const id = `"id":"b9a4bc4e-9a3f-4d5b-8a3a-0a7b2a3f2a11"`
	const rest = `,"attached":[],"created":"2026-01-02T03:04:05Z","always":null,"project":"p"`
	v1 := func(fields string) string {
		return `{"disk":{` + id + `,"name":"a","kind":"fast","size":"7"` + rest + fields + `}}`
	}
	v5 := func(fields string) string {
		return `{"disk":{` + id + `,"name":"a","kind":{"name":"k","cost":10},"size":7,"description":null,"tags":["x"],"parent":{"server":"s"},"user":"u"` + rest + fields + `}}`
	}
	tests := []struct {
		name, version, roles, body string
		status                     int
		want                       string
	}{
		{"first version", "3.1", "", v1(""), 200, "Size:7"},
		{"last version", "3.5", "", v5(""), 200, "Cost:10"},
		{"field of a later version", "3.1", "", v1(`,"description":"d"`), 400, "Additional properties are not allowed ('description' was unexpected)"},
		{"field of a later version in an array", "3.1", "", strings.Replace(v1(""), `"attached":[]`, `"attached":[{"server":"s","device":"d"}]`, 1), 400, "('device' was unexpected)"},
		{"field with another type in the version", "3.4", "", strings.Replace(v1(`,"description":null,"tags":[],"parent":null,"user":"u"`), `"size":"7"`, `"size":7`, 1), 400, "'fast' is not of type 'object'"},
		{"field is missing in its version", "3.2", "", v1(""), 400, "is a required property"},
		{"another case", "3.1", "", strings.Replace(v1(""), `"name"`, `"Name"`, 1), 400, "'name' is a required property"},
		{"name of a Go field", "3.1", "", v1(`,"Ignored":"x"`), 400, "('Ignored' was unexpected)"},
		{"field with a rule", "3.1", "disk:host", v1(`,"host":"h"`), 200, "secrets:0x"},
		{"field with a rule, another caller", "3.1", "disk:rack", v1(`,"host":"h"`), 403, "Policy doesn't allow disk:host to be performed."},
		{"field with a rule before its version", "3.1", "disk:rack", v1(`,"rack":1`), 400, "('rack' was unexpected)"},
		{"two rules, one allowed", "3.5", "disk:host", v5(`,"host":"h","rack":null`), 403, "Policy doesn't allow disk:rack"},
		{"too long", "3.1", "", strings.Replace(v1(""), `"name":"a"`, `"name":"abcdefghi"`, 1), 400, "'abcdefghi' is too long"},
		{"too short", "3.1", "", strings.Replace(v1(""), `"name":"a"`, `"name":""`, 1), 400, "name. Value: . ''"},
		{"pattern", "3.1", "", strings.Replace(v1(""), `"name":"a"`, `"name":"A"`, 1), 400, "'A' does not match '^[a-z]+$'"},
		{"format", "3.1", "", strings.Replace(v1(""), `"id":"b9a4`, `"id":"xyz`, 1), 400, "is not a 'uuid'"},
		{"enum", "3.1", "", strings.Replace(v1(""), `"kind":"fast"`, `"kind":"odd"`, 1), 400, "'odd' is not one of ['fast', 'slow']"},
		{"too large", "3.5", "", strings.Replace(v5(""), `"cost":10`, `"cost":11`, 1), 400, "11 is greater than the maximum of 10"},
		{"too small", "3.5", "", strings.Replace(v5(""), `"cost":10`, `"cost":-1`, 1), 400, "-1 is less than the minimum of 0"},
		{"too many", "3.5", "", strings.Replace(v5(""), `["x"]`, `["x","y","z"]`, 1), 400, "is too long"},
		{"null for a value", "3.1", "", strings.Replace(v1(""), `"name":"a"`, `"name":null`, 1), 400, "None is not of type 'string'"},
		{"null for a list", "3.5", "", strings.Replace(v5(""), `["x"]`, `null`, 1), 400, "None is not of type 'array'"},
		{"a type with a schema of its own", "3.1", "", strings.Replace(v1(""), `"size":"7"`, `"size":"7x"`, 1), 400, "'7x' does not match '^[0-9]+$'"},
		{"no object", "3.1", "", `[]`, 400, "[] is not of type 'object'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := send(t, m, "POST", "/disk", tt.body, "OpenStack-API-Version", "volume "+tt.version, "X-Auth-Token", tt.roles)
			var out any
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
				t.Fatal(err)
			}
			if text := fmt.Sprint(out); w.Code != tt.status || !strings.Contains(text, tt.want) {
				t.Errorf("status %d, want %d with %q:\n%s", w.Code, tt.status, tt.want, text)
			}
		})
	}
}

type (
	blob       []byte
	smallByte  byte
	textInput  struct{ text string }
	textOutput int
)

func (t *textInput) UnmarshalText(raw []byte) error { t.text = string(raw); return nil }

func (t textOutput) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "t%d", t), nil }

// sameShape registers a route whose request and reply have the type T. It sends a body, and compares the reply with out and with
// the document.
func sameShape[T any](t *testing.T, in, out string) {
	t.Helper()
	m := api.New(api.Config{Microversions: versionsOfDisks})
	api.Handle(m, "POST /x", func(_ context.Context, r *api.Request[T]) (T, error) { return r.Body, nil })
	w := send(t, m, "POST", "/x", in)
	if w.Code != 200 || w.Body.String() != out {
		t.Errorf("%T: status %d, %s; want %s", *new(T), w.Code, w.Body, out)
		return
	}
	c, err := apitest.NewChecker(m.OpenAPI(api.About{}, must(api.ParseVersion("3.1"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check("POST", "/x", w.Code, w.Body.Bytes()); err != nil {
		t.Errorf("%T: %v", *new(T), err)
	}
}

// TestSchemaIsWhatJSONDoes: a body that encoding/json can decode is accepted, and a reply fits the document.
func TestSchemaIsWhatJSONDoes(t *testing.T) {
	t.Parallel()
	sameShape[map[string]any](t, `{"a":1}`, `{"a":1}`)
	m := api.New(api.Config{})
	api.Handle(m, "POST /any", func(_ context.Context, r *api.Request[any]) (any, error) { return r.Body, nil })
	if w := send(t, m, "POST", "/any", `[1]`); w.Code != 200 || w.Body.String() != "[1]" {
		t.Errorf("any: status %d, %s", w.Code, w.Body)
	}
	sameShape[map[string]blob](t, `{"a":"aGk="}`, `{"a":"aGk="}`)
	sameShape[map[string][]smallByte](t, `{"a":"aGk="}`, `{"a":"aGk="}`)
	sameShape[map[string]uintptr](t, `{"a":3}`, `{"a":3}`)
	sameShape[map[string]textInput](t, `{"a":"x"}`, `{"a":{}}`)
	sameShape[map[string]textOutput](t, `{"a":3}`, `{"a":"t3"}`)
	sameShape[struct {
		A *int `json:"a,string"`
		B *int `json:"b,string"`
	}](t, `{"a":null,"b":"3"}`, `{"a":null,"b":"3"}`)
	sameShape[struct{ *secretless }](t, `{"p":1}`, `{"p":1}`)
	sameShape[struct { // these names must not collide with the generated names of the fields of a view
		owner2
		Hidden1   int `json:"a"`
		Embedded0 int `json:"b"`
		F0        int `json:"c"`
		Since     int `json:"d" since:"3.2"`
	}](t, `{"p":1,"a":2,"b":3,"c":4}`, `{"p":1,"a":2,"b":3,"c":4}`)
}

type secretless struct {
	P int `json:"p"`
}

type owner2 secretless

// TestOtherCase: encoding/json ignores the case of names. If a name differs from a property only by case, the rule and the
// restrictions of the property still hold for its value.
func TestOtherCase(t *testing.T) {
	t.Parallel()
	type disk struct {
		Name string `json:"name"`
		Host string `json:"host" rule:"disk:host"`
		Free string `json:"free"`
	}
	m := api.New(api.Config{Authenticate: rolesOf, Enforce: enforceRoles})
	api.HandleRoute(m, api.Route{Pattern: "POST /x", Body: []api.Schema{{JSON: `{"properties": {"Disks": {"items": {"properties": {"name": {"maxLength": 3}}}}}}`}}},
		func(_ context.Context, r *api.Request[struct{ Disks []disk }]) (string, error) {
			return fmt.Sprintf("%+v", r.Body.Disks), nil
		})
	api.Handle(m, "POST /self", func(_ context.Context, r *api.Request[describedSelf]) (string, error) { return r.Body.Name, nil })
	for _, tt := range []struct {
		path, body, roles string
		status            int
		want              string
	}{
		{"/x", `{"Disks":[{"name":"a","FREE":"f"}]}`, "", 200, "{Name:a Host: Free:f}"},
		{"/x", `{"Disks":[{"host":"h"}]}`, "", 403, "disk:host"},
		{"/x", `{"Disks":[{"Host":"h"}]}`, "", 403, "disk:host"},
		{"/x", `{"Disks":[{"ho\u017ft":"h"}]}`, "", 403, "disk:host"},
		{"/x", `{"Disks":[{"Host":"h"}]}`, "disk:host", 200, "Host:h"},
		{"/x", `{"Disks":[{"NAME":"too long"}]}`, "", 400, "('NAME' was unexpected)"},
		{"/x", `{"disks":[{"name":"too long"}]}`, "", 400, "('disks' was unexpected)"},
		{"/self", `{"name":"abc"}`, "", 200, "abc"},
		{"/self", `{"Name":"too long"}`, "", 400, "('Name' was unexpected)"},
	} {
		if w := send(t, m, "POST", tt.path, tt.body, "X-Auth-Token", tt.roles); w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s as %q: status %d, %s; want %d with %q", tt.body, tt.roles, w.Code, w.Body, tt.status, tt.want)
		}
	}
}

type describedSelf struct {
	Name string `json:"name"`
}

func (describedSelf) JSONSchema() string {
	return `{"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}`
}

// TestRuleFails: if the rules of a reply cannot be enforced, the request fails. The reply is not sent without the fields.
func TestRuleFails(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{Enforce: func(context.Context, string, map[string]any) error { return fault.New(fault.Unavailable, "no policy") }})
	api.Handle(m, "GET /x", func(context.Context, *api.Request[api.None]) (struct {
		A int `json:"a" rule:"a"`
	}, error,
	) {
		return struct {
			A int `json:"a" rule:"a"`
		}{1}, nil
	})
	if w := send(t, m, "GET", "/x", ""); w.Code != 500 {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

// TestLargeExponents: numbers that the validation would expand to a million digits are refused before the validation.
func TestLargeExponents(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{})
	api.Handle(m, "POST /x", func(_ context.Context, r *api.Request[[]uint]) (int, error) { return len(r.Body), nil })
	for _, number := range []string{"1e999999", "1E+00999999", "1e-999999"} {
		begin := time.Now()
		w := send(t, m, "POST", "/x", "["+strings.Repeat(number+",", 9000)+"1]")
		if took := time.Since(begin); took > 10*time.Second || w.Code != 400 || !strings.Contains(w.Body.String(), number+" is out of range") {
			t.Errorf("%s: status %d after %v: %.200s", number, w.Code, took, w.Body)
		}
	}
	if w := send(t, m, "POST", "/x", `[]`); w.Code != 200 {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

// TestDocumentsAtOnce: documents share no memory that a call changes. If they did, the race detector would find it.
func TestDocumentsAtOnce(t *testing.T) {
	t.Parallel()
	m := newDisks(t)
	e := api.New(api.Config{ErrorList: "volume"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if raw, err := json.Marshal(e.OpenAPI(api.About{}, api.Version{})); err != nil || !strings.Contains(string(raw), `"minimum":400`) {
				t.Errorf("%v: %s", err, raw)
			}
			send(t, m, "GET", "/disk", "", "OpenStack-API-Version", "volume 3.4", "X-Auth-Token", "disk:host")
		})
	}
	wg.Wait()
}
