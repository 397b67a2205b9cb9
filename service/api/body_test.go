package api_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/service/api"
)

func TestBadBodies(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	tests := []struct {
		name, body, want string
	}{
		{"empty", "", "Malformed request body"},
		{"not JSON", "{not json", "Malformed request body"},
		{"cut short", `{"disk":`, "Malformed request body"},
		{"a byte order mark", "\ufeff" + `{"disk":{"name":"e10000","size":1}}`, "Malformed request body"},
		{"trailing value", `{"disk":{"name":"a","size":1}} {}`, "Malformed request body"},
		{"trailing garbage", `{"disk":{"name":"a","size":1}}]`, "Malformed request body"},
		{"unknown field", `{"disk":{"name":"a","size":1,"surprise":1}}`, "Invalid input for field/attribute disk. Value: {'name': 'a', 'size': 1, 'surprise': 1}. Additional properties are not allowed ('surprise' was unexpected)"},
		{"number for string", `{"disk":{"name":5}}`, "Invalid input for field/attribute name. Value: 5. 5 is not of type 'string'"},
		{"string for integer", `{"disk":{"size":"5"}}`, "Invalid input for field/attribute size. Value: 5. '5' is not of type 'integer'"},
		{"fraction for integer", `{"disk":{"size":1.5}}`, "Invalid input for field/attribute size. Value: 1.5. 1.5 is not of type 'integer'"},
		{"too large an integer", `{"disk":{"name":"a","size":99999999999999999999}}`, "Invalid input for field/attribute size. Value: 99999999999999999999. 99999999999999999999 is out of range"},
		{"object for string", `{"disk":{"name":{"a":[1]}}}`, "Invalid input for field/attribute name. Value: {'a': [1]}. {'a': [1]} is not of type 'string'"},
		{"string for object", `{"disk":"x"}`, "Invalid input for field/attribute disk. Value: x. 'x' is not of type 'object'"},
		{"control characters", `{"disk":{"size":"\u0000\u001b\u007f\u0085\n\\"}}`, "Invalid input for field/attribute size. Value: \x00\x1b\x7f\u0085\n\\. " + `'\x00\x1b\x7f\x85\n\\' is not of type 'integer'`},
		{"invisible characters", `{"disk":{"size":"\u00a0\u202e\ue000\ud83d\ude00\udbff\udfff\u00e4 "}}`, "Invalid input for field/attribute size. Value: \u00a0\u202e\ue000😀\U0010ffffä . " + `'\xa0\u202e\ue000😀\U0010ffffä ' is not of type 'integer'`},
		{"control character in an unknown name", `{"disk":{"name":"a","size":1,"a\u001b'":1}}`, `Invalid input for field/attribute disk. Value: {'name': 'a', 'size': 1, "a\x1b'": 1}. Additional properties are not allowed ("a\x1b'" was unexpected)`},
		{"control character in a name that is there twice", `{"disk":{"\u001b":1,"\u001b":1}}`, `Malformed request body: an object has the name '\x1b' twice`},
		{"bool for array", `{"disk":{"tags":true}}`, "Invalid input for field/attribute tags. Value: True. True is not of type 'array'"},
		{"number for bool", `{"disk":{"ready":0}}`, "Invalid input for field/attribute ready. Value: 0. 0 is not of type 'boolean'"},
		{"array at the top", `[1]`, "[1] is not of type 'object'"},
		{
			"long value is shortened",
			`{"disk":{"size":"` + strings.Repeat("x", 5000) + `"}}`,
			"Invalid input for field/attribute size. Value: " + strings.Repeat("x", 400) + ".... '" + strings.Repeat("x", 399) + "... is not of type 'integer'",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantFault(t, send(t, m, "POST", "/disks", tt.body), 400, "badRequest", tt.want)
		})
	}
}

func TestMediaType(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{})
	const body = `{"disk":{"name":"a","size":1}}`
	for _, ct := range []string{"", "text/plain", "application/xml", "application/json-patch+json", ";;"} {
		wantFault(t, send(t, m, "POST", "/disks", body, "Content-Type", ct), 415, "badMediaType",
			"The media type of the body must be application/json.")
	}
	for _, ct := range []string{"application/json", "application/json; charset=UTF-8", "Application/JSON"} {
		if w := send(t, m, "POST", "/disks", body, "Content-Type", ct); w.Code != 202 {
			t.Errorf("%s: status %d", ct, w.Code)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{MaxBody: 64})
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	fits := `{"disk":{"name":"a","size":1}}`
	fits += strings.Repeat(" ", 64-len(fits))
	tests := []struct {
		name    string
		body    string
		chunked bool
		want    int
	}{
		{"fits", fits, false, 202},
		{"fits, chunked", fits, true, 202},
		{"one byte more", fits + " ", false, 413},
		{"one byte more, chunked", fits + " ", true, 413},
		{"much more, chunked", strings.Repeat(fits, 10000), true, 413},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := io.Reader(strings.NewReader(tt.body))
			if tt.chunked {
				body = io.MultiReader(body) // hides the length of the body
			}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/disks", body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			res, err := srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			raw, _ := io.ReadAll(res.Body)
			if res.StatusCode != tt.want {
				t.Errorf("status %d, want %d: %s", res.StatusCode, tt.want, raw)
			}
			if want := `{"overLimit":{"code":413,"message":"Request is too large. Larger than max_request_body_size (64)."}}`; tt.want == 413 && string(raw) != want {
				t.Errorf("body %s", raw)
			}
		})
	}
	if w := send(t, mustMux(newMux(api.Config{})), "POST", "/disks", strings.Repeat(" ", 114689)); w.Code != 413 {
		t.Errorf("default limit: status %d for 114689 bytes, want 413", w.Code)
	}
	if w := send(t, mustMux(newMux(api.Config{})), "POST", "/disks", fits+strings.Repeat(" ", 114688-64)); w.Code != 202 {
		t.Errorf("default limit: status %d for 114688 bytes, want 202", w.Code)
	}
}

// TestSlowBody: a client that sends its headers and then no body gets a reply.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{BodyTimeout: 20 * time.Millisecond})
	srv := httptest.NewServer(m)
	defer srv.Close()
	body, never := io.Pipe()
	defer never.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/disks", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %d, want 408", res.StatusCode)
	}
}

// FuzzDecode: every body is answered with 202, 400 or 413, and the reply is JSON.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"disk":{"name":"a","size":1}}`, `{"disk":{"name":5}}`, `{"disk":{"tags":[1]}}`, `{"disk":[]}`, "{", `{"x":1}`, "null", "[[[", `"\ud800"`,
		`{"disk":{"meta":{"a":1}}}`, "{\"\xff\":1}",
	} {
		f.Add(s)
	}
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	api.Handle(m, "POST /disks", func(_ context.Context, r *api.Request[create]) (create, error) {
		r.Status = http.StatusAccepted
		return r.Body, nil
	})
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/disks", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		if w.Code != 202 && w.Code != 400 && w.Code != 413 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q: %d %s", body, w.Code, w.Body)
		}
	})
}
