# CONTRIBUTING.md describes the targets. They need Go, make, git and the usual
# Unix commands. The targets that use bin/testenv also need RabbitMQ, NATS and
# MariaDB: as root on Debian or Ubuntu they install missing packages, and
# otherwise they fail with the names of the missing packages.

GO   ?= go
TOOL := $(GO) tool -modfile=tools/go.mod

# The maximum duration of the tests of one package.
TIMEOUT   ?= 15m
# The build tag of the libvirt driver. No other package depends on it.
TAGS      := -tags libvirt_dlopen
# The duration of each benchmark.
BENCHTIME ?= 2s
# How many times `make soak` runs each test.
ROUNDS    ?= 20
# The number of inputs for each fuzz test.
FUZZ      ?= 20000x

# WITH runs a command with a private RabbitMQ, NATS and MariaDB. The program
# bin/testenv is built before, because `go run` does not forward signals. The
# program replaces the shell of the recipe (exec), so that it gets the signals of
# make, and make waits until the program has stopped the services.
WITH := exec bin/testenv --
SELF := $(MAKE) --no-print-directory

.PHONY: run services test short lint bench bench-report chaos soak tempest upgrade-test accept accept-clients release-check fuzz pictures generate fmt clean checks vet tidy vuln unit bin/testenv
.NOTPARALLEL: # tests that measure time must not share the cores with other targets

run:
	$(GO) run ./examples/nova-mini

# If CI is set, a test whose service is missing fails. Otherwise the test would
# be skipped without notice.
test soak chaos tempest upgrade-test: export CI := $(or $(CI),true)

# services runs a private RabbitMQ and MariaDB until Ctrl-C, and prints the options with which a component uses them.
# It installs nothing.
services:
	$(GO) build -o bin/testenv ./internal/testenv/run
	exec bin/testenv --only rabbitmq,mariadb

test: bin/testenv
	$(WITH) $(SELF) checks

# short runs the tests without the race detector, and leaves out those that are
# skipped with -short. It takes less than three minutes. Most of the tests wait,
# so more tests run at a time than there are cores.
short: bin/testenv
	$(WITH) $(GO) test -short -parallel 6 ./...

checks: vet lint tidy vuln unit fuzz

vet:
	$(GO) vet ./...
	$(GO) vet $(TAGS) ./examples/drivers/libvirt/...

lint:
	$(TOOL) golangci-lint run ./...
	$(TOOL) golangci-lint fmt --diff

tidy:
	$(GO) mod tidy -diff

# vuln fails if govulncheck finds a vulnerability (exit code 3), or cannot load
# the code. It does not fail if the database of vulnerabilities cannot be
# reached.
vuln:
	@echo govulncheck ./...; \
	code=0; out=$$(timeout 300 $(TOOL) govulncheck ./... 2>&1) || code=$$?; \
	case $$code,$$out in \
	0,*) ;; \
	124,* | *"fetching vulnerabilities"*) echo "govulncheck: left out, its database cannot be reached" ;; \
	*) echo "$$out"; exit $$code ;; \
	esac

# unit runs all tests. At the end it prints the ten slowest packages, so that a package that has become slow is noticed.
# The package of the root has no code, and its tests read the whole tree, so they run without the race detector. The target vet has
# done the work of -vet.
unit:
	@mkdir -p bin; \
	echo "$(GO) test -race -vet=off $(TAGS) -timeout $(TIMEOUT) ./..."; \
	{ ( code=0; $(GO) test -vet=off . & $(GO) test -race -vet=off $(TAGS) -timeout $(TIMEOUT) $$($(GO) list $(TAGS) ./... | tail -n +2) || code=1; wait $$! || code=1; exit $$code ) 2>&1; \
	  echo $$? >bin/unit.code; } | tee bin/unit.log; \
	echo "the ten slowest packages, in seconds:"; \
	awk '($$1 == "ok" || $$1 == "FAIL") && $$3 ~ /^[0-9.]+s$$/ { sub(/s$$/, "", $$3); print $$3, $$2 }' bin/unit.log | sort -rn | head -10; \
	exit $$(cat bin/unit.code)

# The limit of a fuzz test is a number of inputs and not a duration, because before Go 1.27
# a fuzz test may fail without a reason at the end of its duration (golang/go#75804).
fuzz:
	@grep -rH --include='*_test.go' '^func Fuzz' . | sed 's|/[^/]*:func | |; s|(.*||' | sort | while read -r dir target; do \
		echo "$(GO) test -run '^$$' -fuzz ^$$target\$$ -fuzztime $(FUZZ) $$dir"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ) "$$dir" </dev/null || exit 1; \
	done

bench: bin/testenv
	$(WITH) $(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m \
		$$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n 1 dirname | sort -u)

# bench-report writes docs/benchmarks.md and the short table of README.md. Each figure is the median of three rounds of BENCHTIME.
bench-report: bin/testenv
	$(WITH) $(GO) run ./internal/benchreport -slice $(BENCHTIME)

# chaos runs a cloud of nova-mini and kills its processes and services. It takes about 15
# minutes. CHAOS is the time for which the test causes failures. To repeat the random choices
# of a run, set ARMATURE_CHAOS_SEED to the seed of that run.
CHAOS ?= 7m

chaos: bin/testenv
	$(WITH) env ARMATURE_CHAOS=$(CHAOS) $(GO) test -run '^Test(Network)?Chaos$$' -count 1 -timeout 40m -v ./examples/nova-mini/e2e

soak: bin/testenv
	$(WITH) env ARMATURE_TEST_LATE=2m ARMATURE_TEST_OUTAGE=60s ARMATURE_TEST_STORM=20000 $(GO) test -race $(TAGS) -count $(ROUNDS) -timeout 6h ./...

# tempest runs OpenStack's acceptance tests of ../shared/tempest against a cloud of nova-mini, and prints which tests pass. It needs Debian's
# package tempest, which bin/testenv installs if ARMATURE_TEMPEST is set. TESTS is a regular expression for the names of tests.
tempest: bin/testenv
	exec env ARMATURE_TEMPEST=$(abspath ../shared/tempest) ARMATURE_TEMPEST_TESTS="$(TESTS)" bin/testenv -- $(GO) test -run '^TestTempest$$' -count 1 -timeout 60m -v ./examples/nova-mini/e2e

# upgrade-test upgrades a cloud from this release to the next release and goes back, in ROUNDS random orders. It also upgrades a
# cloud from the last release to this release.
upgrade-test: bin/testenv
	$(WITH) env ARMATURE_UPGRADE_ROUNDS=$(ROUNDS) $(GO) test -run '^TestUpgrade' -count 1 -p 1 -timeout 60m -v ./examples/hello ./examples/nova-mini/e2e

# accept runs the checks that every commit must pass, but that take too long for the target test.
accept:
	$(SELF) release-check
	$(SELF) upgrade-test ROUNDS=3
	$(SELF) accept-clients

# accept-clients runs the acceptance tests of other clients. It also runs in full the tests of which the target test runs only a part.
accept-clients: export CI := $(or $(CI),true)
accept-clients: bin/testenv
	$(WITH) env ARMATURE_ACCEPT=1 $(GO) test $(TAGS) -run '^(TestGophercloud|TestClients|TestCommands|TestStrict|TestServerOrder|TestFlavorLists|TestGlance|TestLibvirtImages|TestOpenStackClient|TestRestore|TestClientErrors|TestOpenAPI)$$' -count 1 -p 1 -timeout 30m ./examples/nova-mini ./examples/nova-mini/api ./examples/nova-mini/e2e

# release-check compares the tree with the last release, see testdata/last-release.
release-check:
	$(GO) run ./internal/releasecheck

# pictures draws the pictures of docs/pictures with Graphviz (Debian's package graphviz). The first line of a picture has the checksum of its .dot
# file, so that TestPictures finds a picture that is older than its .dot file.
pictures:
	for f in docs/pictures/*.dot; do \
		{ echo "<!-- $$(sha256sum <$$f | cut -c1-64) -->"; dot -Tsvg $$f | sed -n '/^<svg/,$$p'; } >$${f%.dot}.svg || exit 1; \
	done

# generate makes the Go and Python code of the .proto files. TestGenerated fails if the committed code
# differs.
PROTOS = $(sort $(shell find . -name '*.proto' -printf '%P\n'))
# The Python package of each directory with .proto files, in python/.
PYTHON = armature_driver=driver/driverpb armature_compute=examples/nova-mini/compute/computepb
OUT   ?= .

generate:
	$(GO) build -modfile=tools/go.mod -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH="$(CURDIR)/bin:$$PATH" protoc -I . --go_out=$(OUT) --go_opt=paths=source_relative \
		--go-grpc_out=$(OUT) --go-grpc_opt=paths=source_relative $(PROTOS)
	mkdir -p $(OUT)/python
	protoc $(addprefix -I ,$(PYTHON)) --plugin=protoc-gen-grpc=$$(command -v grpc_python_plugin) \
		--python_out=$(OUT)/python --grpc_out=$(OUT)/python $(PROTOS)

fmt:
	$(TOOL) golangci-lint fmt

clean:
	rm -rf bin

bin/testenv:
	$(GO) build -o $@ ./internal/testenv/run
	$(GO) build -modfile=tools/nats.mod -o bin/nats-server github.com/nats-io/nats-server/v2
