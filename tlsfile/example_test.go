package tlsfile_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// The zero value trusts the system's authorities. If a file is missing, the error names the file.
func ExampleClient_Config() {
	cfg, err := tlsfile.Client{ServerName: "rabbit.example"}.Config()
	fmt.Println(cfg.ServerName, cfg.InsecureSkipVerify, err)

	_, err = tlsfile.Client{CAFile: "/nonexistent/ca.pem"}.Config()
	fmt.Println(fault.CodeOf(err), err)

	_, err = tlsfile.Client{CertFile: "/etc/volume/client.pem"}.Config()
	fmt.Println(fault.CodeOf(err), err)
	// Output:
	// rabbit.example false <nil>
	// Invalid read certificate authorities: open /nonexistent/ca.pem: no such file or directory
	// Invalid client certificate: set both files or neither: certificate "/etc/volume/client.pem", private key ""
}

// Failure tells a client that another attempt does not help: the server's certificate is not trusted.
func ExampleFailure() {
	server := httptest.NewTLSServer(http.NotFoundHandler()) // with a certificate that no authority signed
	defer server.Close()
	server.Config.ErrorLog = nil

	cfg, err := tlsfile.Client{}.Config()
	if err != nil {
		fmt.Println(err)
		return
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
	resp, err := client.Get(server.URL) //nolint:noctx // a short example
	if err == nil {
		_ = resp.Body.Close()
	}
	fmt.Println(fault.CodeOf(tlsfile.Failure(err)))
	// Output: Denied
}
