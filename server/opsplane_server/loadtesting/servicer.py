"""LoadTesting, RPC in and RPC out. Requests are validated and callers known before they come here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from opsplane.loadtesting.v1 import (
    loadtesting_pb2,
    loadtesting_pb2_grpc,
    projects_pb2,
    reports_pb2,
    runs_pb2,
    specs_pb2,
)

from opsplane_server.loadtesting import convert, convert_reports, convert_runs, names
from opsplane_server.loadtesting.comparison.comparing import Comparisons
from opsplane_server.loadtesting.datasets.data_sets import DataSets
from opsplane_server.loadtesting.datasets.ports import DataSetStore
from opsplane_server.loadtesting.datasets.servicer import DataSetRpcs
from opsplane_server.loadtesting.history.port import MetricStore
from opsplane_server.loadtesting.metrics.results import Verdict
from opsplane_server.loadtesting.model import RunPlan, RunState
from opsplane_server.loadtesting.ports import ProjectStore, RunStore, SpecStore
from opsplane_server.loadtesting.projects import Projects
from opsplane_server.loadtesting.reports.exporting import Format, Reports
from opsplane_server.loadtesting.runs import Runs
from opsplane_server.loadtesting.specs import Specs, describe
from opsplane_server.loadtesting.supervise import generator_names, is_overdue
from opsplane_server.loadtesting.watch import RunWatcher
from opsplane_server.platform.changes import Changes
from opsplane_server.rpc.filters import FieldType, parse
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.masks import changed_fields
from opsplane_server.rpc.paging import next_page_token, page_request

Context = grpc.aio.ServicerContext[Any, Any]

# The full name; taking it from the descriptor also loads the roles of the RPCs, which no message refers to.
SERVICE = loadtesting_pb2.DESCRIPTOR.services_by_name["LoadTesting"].full_name

PROJECT_UPDATABLE = ("title", "summary", "description")
PROJECT_FILTER = {"title": FieldType.STRING, "summary": FieldType.STRING, "create_time": FieldType.TIME}
SPEC_FILTER = {"title": FieldType.STRING, "version": FieldType.STRING, "create_time": FieldType.TIME}
ENDPOINT_FILTER = dict.fromkeys(("method", "path", "tag", "operation_id", "summary"), FieldType.STRING)
RUN_FILTER: dict[str, FieldType | Collection[str]] = {
    "state": {state.value for state in RunState},
    "verdict": {verdict.value for verdict in Verdict},
    "title": FieldType.STRING,
    "creator": FieldType.STRING,
    "create_time": FieldType.TIME,
}
FORMATS = {
    reports_pb2.REPORT_FORMAT_UNSPECIFIED: Format.HTML,
    **{reports_pb2.ReportFormat.Value(f"REPORT_FORMAT_{form.value}"): form for form in Format},
}


class LoadTestingServicer(DataSetRpcs, loadtesting_pb2_grpc.LoadTestingServicer):
    """`opsplane.loadtesting.v1.LoadTesting`."""

    def __init__(
        self,
        changes: Changes,
        projects: Projects,
        specs: Specs,
        runs: Runs,
        watcher: RunWatcher,
        data_sets: DataSets,
        *,
        project_store: ProjectStore,
        spec_store: SpecStore,
        run_store: RunStore,
        data_set_store: DataSetStore,
        history: MetricStore,
        job_warning: timedelta,
    ) -> None:
        DataSetRpcs.__init__(self, changes, data_sets, data_set_store)
        self._projects = projects
        self._specs = specs
        self._runs = runs
        self._watcher = watcher
        self._project_store = project_store
        self._spec_store = spec_store
        self._run_store = run_store
        self._job_warning = job_warning
        self._comparisons = Comparisons(run_store, history)
        self._reports = Reports(run_store, history, self._comparisons)

    # --- projects

    async def CreateProject(self, request: projects_pb2.CreateProjectRequest, context: Context) -> projects_pb2.Project:
        """See the proto, as for all methods below."""
        name = names.project(request.project_id or new_id())

        async def create() -> projects_pb2.Project:
            wanted = convert.project_from_proto(request.project, name)
            return convert.project_to_proto(await self._projects.create(wanted))

        return await self._changes.apply(request, projects_pb2.Project, create)

    async def GetProject(self, request: projects_pb2.GetProjectRequest, context: Context) -> projects_pb2.Project:
        """Reads."""
        return convert.project_to_proto(await self._project_store.get_project(request.name))

    async def ListProjects(
        self, request: projects_pb2.ListProjectsRequest, context: Context
    ) -> projects_pb2.ListProjectsResponse:
        """Reads a page."""
        binding = f"ListProjects {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._project_store.list_projects(page, parse(request.filter, PROJECT_FILTER))
        return projects_pb2.ListProjectsResponse(
            projects=[convert.project_to_proto(p) for p in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    async def UpdateProject(self, request: projects_pb2.UpdateProjectRequest, context: Context) -> projects_pb2.Project:
        """Changes the fields of the mask."""
        fields = changed_fields(request.update_mask, request.project, PROJECT_UPDATABLE)

        async def update() -> projects_pb2.Project:
            wanted = convert.project_from_proto(request.project, request.project.name)
            return convert.project_to_proto(await self._projects.update(wanted, fields, request.etag))

        return await self._changes.apply(request, projects_pb2.Project, update)

    async def DeleteProject(self, request: projects_pb2.DeleteProjectRequest, context: Context) -> Empty:
        """Deletes."""
        return await self._changes.apply(
            request,
            Empty,
            _then_empty(lambda: self._projects.delete(request.name, force=request.force, etag=request.etag)),
        )

    # --- specifications

    async def AnalyzeSpec(self, request: specs_pb2.AnalyzeSpecRequest, context: Context) -> specs_pb2.Spec:
        """Analyzes before the transaction: fetching and parsing may take seconds."""
        replayed = await self._changes.replay(request, specs_pb2.Spec)
        if replayed is not None:
            return replayed
        name = names.spec(names.ids(request.parent)[0], request.spec_id or new_id())
        analyzed = await self._specs.analyze(
            request.parent, url=request.openapi_url, content=request.content, base_url=request.base_url
        )
        if request.validate_only:
            return convert.spec_to_proto(describe(name, analyzed))

        async def keep() -> specs_pb2.Spec:
            return convert.spec_to_proto(await self._specs.keep(name, analyzed))

        return await self._changes.apply(request, specs_pb2.Spec, keep)

    async def GetSpec(self, request: specs_pb2.GetSpecRequest, context: Context) -> specs_pb2.Spec:
        """Reads."""
        return convert.spec_to_proto(await self._spec_store.get_spec(request.name))

    async def ListSpecs(self, request: specs_pb2.ListSpecsRequest, context: Context) -> specs_pb2.ListSpecsResponse:
        """Reads a page."""
        binding = f"ListSpecs {request.parent} {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._spec_store.list_specs(request.parent, page, parse(request.filter, SPEC_FILTER))
        return specs_pb2.ListSpecsResponse(
            specs=[convert.spec_to_proto(spec) for spec in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    async def DeleteSpec(self, request: specs_pb2.DeleteSpecRequest, context: Context) -> Empty:
        """Deletes; runs keep their own copy of what they used."""
        return await self._changes.apply(
            request, Empty, _then_empty(lambda: self._spec_store.delete_spec(request.name))
        )

    async def ListEndpoints(
        self, request: specs_pb2.ListEndpointsRequest, context: Context
    ) -> specs_pb2.ListEndpointsResponse:
        """Reads a page."""
        binding = f"ListEndpoints {request.parent} {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._spec_store.list_endpoints(request.parent, page, parse(request.filter, ENDPOINT_FILTER))
        return specs_pb2.ListEndpointsResponse(
            endpoints=[convert.endpoint_to_proto(endpoint) for endpoint in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    # --- runs

    async def GenerateScript(
        self, request: runs_pb2.GenerateScriptRequest, context: Context
    ) -> runs_pb2.GenerateScriptResponse:
        """Generates, starts nothing."""
        _, script = await self._planned(request.parent, request.run)
        return runs_pb2.GenerateScriptResponse(script=script)

    async def CreateRun(self, request: runs_pb2.CreateRunRequest, context: Context) -> runs_pb2.Run:
        """Plans before the transaction, since k6 may have to read a script; stores run and operation in one."""
        replayed = await self._changes.replay(request, runs_pb2.Run)
        if replayed is not None:
            return replayed
        name = names.run(names.ids(request.parent)[0], request.run_id or new_id())
        plan, script = await self._planned(request.parent, request.run)
        run = self._runs.describe(name, request.run.title, request.run.description, plan)
        if request.validate_only:
            return convert_runs.run_to_proto(run)

        async def create() -> runs_pb2.Run:
            return convert_runs.run_to_proto(await self._runs.create(run, script))

        return await self._changes.apply(request, runs_pb2.Run, create)

    async def GetRun(self, request: runs_pb2.GetRunRequest, context: Context) -> runs_pb2.Run:
        """Reads."""
        return convert_runs.run_to_proto(await self._run_store.get_run(request.name))

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, context: Context) -> runs_pb2.ListRunsResponse:
        """Reads a page, in brief or in full."""
        binding = f"ListRuns {request.parent} {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._run_store.list_runs(request.parent, page, parse(request.filter, RUN_FILTER))
        full = request.view == runs_pb2.RUN_VIEW_FULL
        return runs_pb2.ListRunsResponse(
            runs=[convert_runs.run_to_proto(run, full=full) for run in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    async def CancelRun(self, request: runs_pb2.CancelRunRequest, context: Context) -> runs_pb2.Run:
        """Asks the supervisor of the run to end it."""

        async def cancel() -> runs_pb2.Run:
            return convert_runs.run_to_proto(await self._runs.cancel(request.name))

        return await self._changes.apply(request, runs_pb2.Run, cancel)

    async def DeleteRun(self, request: runs_pb2.DeleteRunRequest, context: Context) -> Empty:
        """Deletes."""
        return await self._changes.apply(request, Empty, _then_empty(lambda: self._run_store.delete_run(request.name)))

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        """Streams from the store, so that any process can serve it."""
        async for update in self._watcher.watch(request.name, request.cursor):
            yield convert_runs.update_to_proto(update)

    async def GetRunScript(
        self, request: runs_pb2.GetRunScriptRequest, context: Context
    ) -> runs_pb2.GetRunScriptResponse:
        """Reads."""
        run = await self._run_store.get_run(request.name)
        return convert_runs.script_to_proto(run, await self._run_store.get_script(request.name))

    async def ListRunLogs(self, request: runs_pb2.ListRunLogsRequest, context: Context) -> runs_pb2.ListRunLogsResponse:
        """Reads a page."""
        binding = f"ListRunLogs {request.parent}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        run = await self._run_store.get_run(request.parent)
        found = await self._run_store.list_log(run.key, page)
        return runs_pb2.ListRunLogsResponse(
            lines=[convert_runs.log_line_to_proto(line) for line in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    async def ListJobs(self, request: reports_pb2.ListJobsRequest, context: Context) -> reports_pb2.ListJobsResponse:
        """Reads a page of the runs at work, each with its load generators."""
        page = page_request(request.page_size, request.page_token, binding="ListJobs", key_types=(int,))
        found = await self._run_store.list_active(page)
        now = datetime.now(UTC)
        return reports_pb2.ListJobsResponse(
            jobs=[
                convert_runs.job_to_proto(run, generator, overdue=is_overdue(run, now, self._job_warning))
                for run in found[: page.size]
                if run.start_time is not None
                for generator in generator_names(run)
            ],
            next_page_token=_next("ListJobs", found, page.size),
        )

    # --- comparison and reports

    async def CompareRuns(
        self, request: reports_pb2.CompareRunsRequest, context: Context
    ) -> reports_pb2.CompareRunsResponse:
        """Reads the windows of all runs that it compares."""
        tolerances = convert_reports.tolerances_from_proto(request)
        if request.runs:
            found = await self._comparisons.named(request.parent, request.runs, request.baseline, tolerances)
        else:
            found = await self._comparisons.last(
                request.parent, request.last, request.title, request.baseline, tolerances
            )
        return convert_reports.comparison_to_proto(found)

    async def ExportReport(
        self, request: reports_pb2.ExportReportRequest, context: Context
    ) -> AsyncIterator[reports_pb2.ExportReportResponse]:
        """Sends the file in parts."""
        async for part in self._reports.export(request.name, FORMATS[request.format], request.baseline):
            yield reports_pb2.ExportReportResponse(
                file_name=part.file_name, content_type=part.content_type, content=part.content
            )

    async def _planned(self, parent: str, message: runs_pb2.Run) -> tuple[RunPlan, str]:
        endpoints = await self._runs.endpoints(parent, convert_runs.endpoint_fields(message))
        return await self._runs.plan(parent, convert_runs.request_from_proto(message, endpoints))


def _then_empty(action: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[Empty]]:
    async def act() -> Empty:
        await action()
        return Empty()

    return act


def _next(binding: str, found: list[Any], size: int) -> str:
    return next_page_token(binding, [found[size - 1].key]) if len(found) > size else ""
